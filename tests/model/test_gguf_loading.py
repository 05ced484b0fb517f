"""A base in a GGUF file is the model that was written, and what is none is refused by name."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import nn
from transformers import AutoModelForCausalLM

from conftest import tiny_base
from gguf_files import BOS, EOS, PAIR, Q4_1, Q8_0, SIZES, gguf_llama, write_gguf
from runs import logits
from skipgpt.errors import ConfigError, MissingExtraError, UnsupportedModelError
from skipgpt.model.base import base_config, base_location, load_base
from skipgpt.model.loading.fingerprint import fingerprint
from skipgpt.model.loading.gguf import is_gguf
from skipgpt.model.surgery import add_routers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The tiny Llama in float32."""
    return write_gguf(tmp_path / "model.gguf")


def _same(found: nn.Module, wanted: nn.Module) -> bool:
    ours, its = dict(found.named_parameters()), dict(wanted.named_parameters())
    return ours.keys() == its.keys() and all(torch.equal(ours[n], its[n]) for n in its)


# What is loaded.


def test_the_model_is_the_one_that_was_written(file: Path) -> None:
    model, _ = load_base(str(file))
    wanted = gguf_llama()
    assert _same(model, wanted)
    assert torch.equal(logits(model), logits(wanted))
    assert fingerprint(model) == fingerprint(wanted)
    assert not model.training


@pytest.mark.parametrize("kind", [Q8_0, Q4_1])
def test_quantised_weights_are_unpacked(kind: object, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind=kind)
    wanted = gguf_llama()
    with torch.no_grad():
        for parameter in wanted.parameters():
            if parameter.ndim == 2:  # blocks lie in rows, and rows are only put in another order
                packed = quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(dequantize(packed, kind)))
    model, _ = load_base(str(file))
    assert _same(model, wanted)
    assert not _same(model, gguf_llama())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_transformers_reads_the_same_weights_of_the_file(dtype: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind=Q8_0)
    wanted = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=getattr(torch, dtype)
    )
    model, _ = load_base(str(file), dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert _same(model, wanted)


def test_the_fingerprint_is_the_same_in_either_dtype(tmp_path: Path) -> None:
    name = str(write_gguf(tmp_path / "model.gguf", kind=Q4_1))
    assert fingerprint(load_base(name)[0]) == fingerprint(load_base(name, dtype="bfloat16")[0])


def test_tied_embeddings_are_tied(tmp_path: Path) -> None:
    wanted = gguf_llama(tie_word_embeddings=True)
    model, _ = load_base(str(write_gguf(tmp_path / "model.gguf", wanted)))
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), logits(wanted))


def test_biases_are_read_where_the_family_has_them(tmp_path: Path) -> None:
    wanted = tiny_base("qwen2", initializer_range=0.2, **SIZES)
    for name, parameter in wanted.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    file = write_gguf(tmp_path / "model.gguf", wanted, architecture="qwen2")
    assert _same(load_base(str(file))[0], wanted)


def test_nothing_of_a_quantised_model_is_left(tmp_path: Path) -> None:
    model, _ = load_base(str(write_gguf(tmp_path / "model.gguf", kind=Q8_0)))
    assert not hasattr(model.config, "quantization_config")
    assert not hasattr(model, "hf_quantizer")
    assert not getattr(model, "is_quantized", False)
    assert {type(each) for each in model.modules() if hasattr(each, "in_features")} == {nn.Linear}
    add_routers(model)


def test_the_tokenizer_has_the_tokens_of_the_file(file: Path) -> None:
    _, tokenizer = load_base(str(file))
    ids = tokenizer("cats<|end|>").input_ids
    assert ids == [PAIR, *tokenizer.convert_tokens_to_ids(["t", "s"]), EOS]
    assert tokenizer.decode(ids) == "cats<|end|>"
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert special == (BOS, EOS, EOS)
    assert tokenizer.unk_token is None


def test_generation_ends_where_the_file_says_a_text_ends(file: Path) -> None:
    model, _ = load_base(str(file))
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id) == (BOS, EOS)


def test_the_config_alone_is_that_of_the_model(file: Path) -> None:
    config, model = base_config(str(file)), load_base(str(file))[0]
    for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        assert getattr(config, name) == getattr(gguf_llama().config, name)
    assert config.rope_parameters == model.config.rope_parameters


# Where it is found.


def test_only_the_file_is_read_and_nothing_beside_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "s"}))
    (tmp_path / "adapter_config.json").write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_gguf(elsewhere / "model.gguf", gguf_llama(seed=1))
    monkeypatch.chdir(elsewhere)
    model, tokenizer = load_base("../model.gguf")
    assert _same(model, gguf_llama())
    assert tokenizer.eos_token_id == EOS
    assert model.name_or_path == tokenizer.name_or_path == base_location("../model.gguf")


def test_a_link_keeps_its_name(file: Path, tmp_path: Path) -> None:
    blob = shutil.move(file, tmp_path / "0c0ffee")
    file.symlink_to(blob)
    assert base_location(str(file)) == str(file)
    assert _same(load_base(str(file))[0], gguf_llama())


def test_names_end_in_gguf_and_a_folder_is_a_folder(tmp_path: Path) -> None:
    assert is_gguf("a/b.gguf")
    assert is_gguf("B.GGUF")
    assert not is_gguf("owner/model-GGUF")
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(str(tmp_path / "folder.gguf"))


# What is no base.


def _refused(file: Path) -> UnsupportedModelError:
    with pytest.raises(UnsupportedModelError) as caught:
        load_base(str(file))
    assert caught.value.doing == f"loading the base model {str(file)!r}"
    with pytest.raises(UnsupportedModelError, match="reading the config of"):
        base_config(str(file))
    return caught.value


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    error = _refused(tmp_path / "none.gguf")
    assert error.got == "No such file or directory"
    assert error.todo == "check the path; download a file from a hub first"


@pytest.mark.parametrize("content", [b"version https://git-lfs", b"PK\x03\x04", b"GG", b""])
def test_a_foreign_file_is_called_by_how_it_starts(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    error = _refused(tmp_path / "model.gguf")
    assert error.got == f"a file that starts with {content[:4]!r}"
    assert error.expected == "a whole GGUF file of version 2 or 3"


def test_a_file_that_ends_too_early_is_refused_wherever_it_ends(file: Path, tmp_path: Path) -> None:
    whole, cut = file.read_bytes(), tmp_path / "cut.gguf"
    for size in (*range(4, 4_000, 97), *range(4_000, len(whole) - 32, 20_011)):
        cut.write_bytes(whole[:size])
        error = _refused(cut)
        assert error.got.startswith(f"a file of {size:,} bytes "), size
        assert error.expected.startswith("a whole GGUF file")
        assert error.todo == "copy or download the file again"
    assert "whose tensors end at" in error.got


@pytest.mark.parametrize(
    ("place", "value", "got"),
    [
        (4, 1, "of GGUF version 1"),
        (4, 3 << 24, "of GGUF version 50331648"),  # the other byte order
        (8, 2**62, "bytes that ends within its header"),
        (16, 2**62, "with a setting of the unknown type|ends within its header"),
        (24, 2**63, "ends within its header"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(
    place: int, value: int, got: str, file: Path
) -> None:
    content = bytearray(file.read_bytes())
    width = 4 if place == 4 else 8
    content[place : place + width] = value.to_bytes(width, "little")
    file.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=got):
        load_base(str(file))


@pytest.mark.parametrize("architecture", ["mamba", "t5", "clip", "no-such", "tokenizer"])
def test_an_architecture_that_cannot_be_routed_is_refused_by_name(
    architecture: str, tmp_path: Path
) -> None:
    error = _refused(write_gguf(tmp_path / "model.gguf", architecture=architecture))
    assert error.got == f"a GGUF file of the architecture {architecture!r}"
    assert {"llama", "qwen2", "gemma3"} < set(error.expected.removeprefix("one of ").split(", "))


def test_a_file_without_some_tensors_is_refused_by_their_names(tmp_path: Path) -> None:
    left_out = {"blk.1.attn_q.weight"}
    file = write_gguf(tmp_path / "model.gguf", left_out=left_out)
    with pytest.raises(UnsupportedModelError, match="loading the base model") as caught:
        load_base(str(file))
    assert caught.value.got == (
        "a GGUF file without the tensors model.layers.1.self_attn.q_proj.weight"
    )


def test_a_file_with_tensors_of_another_shape_is_refused_by_their_names(tmp_path: Path) -> None:
    name = "blk.2.ffn_up.weight"
    more = {name: np.ones((32, 32), np.float32)}
    file = write_gguf(tmp_path / "model.gguf", more=more)
    with pytest.raises(UnsupportedModelError, match="loading the base model") as caught:
        load_base(str(file))
    assert caught.value.got == (
        "a GGUF file with another shape of the tensors model.layers.2.mlp.up_proj.weight "
        "([32, 32], not [64, 32])"
    )


def test_a_file_with_tensors_that_transformers_passes_over_is_refused(tmp_path: Path) -> None:
    more = {f"blk.{n}.attn_{p}.bias": np.ones(32, np.float32) for n in range(3) for p in "qo"}
    file = write_gguf(tmp_path / "model.gguf", more=more)
    with pytest.raises(UnsupportedModelError, match="loading the base model") as caught:
        load_base(str(file))
    assert caught.value.got == (
        "a GGUF file with the unknown tensors blk.0.attn_o.bias, blk.0.attn_q.bias, "
        "blk.1.attn_o.bias and 3 more"
    )


def test_without_the_package_the_install_line_is_printed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for load in (load_base, base_config):
        with pytest.raises(MissingExtraError, match=r"run: pip install 'skipgpt\[gguf\]'"):
            load(str(file))


def test_a_gguf_file_is_not_quantised_once_more(file: Path) -> None:
    with pytest.raises(ConfigError, match="to 8bit: got a GGUF file") as caught:
        load_base(str(file), quantize="8bit")
    assert caught.value.todo == "leave out --quantize (quantize=None)"


# The rotary embedding.

WIDE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _divisors(context: int = 8192) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.2, heads of 8."""
    found = []
    for step in range(4):
        length = 2 * math.pi * 500000.0 ** (step / 4)
        if length < context / 4:
            found.append(1.0)
        elif length > context:
            found.append(32.0)
        else:
            smooth = (context / length - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / 32 + smooth))
    return np.array(found, np.float32)


def test_the_rotary_embedding_of_llama_3_is_kept(tmp_path: Path) -> None:
    divisors = _divisors()
    assert divisors[0] == 1 < divisors[2] < divisors[3] == 32
    wanted = gguf_llama(rope_parameters=LLAMA_3)
    more = {"rope_freqs.weight": divisors}
    model, _ = load_base(str(write_gguf(tmp_path / "model.gguf", wanted, more=more)))
    assert model.config.rope_parameters == LLAMA_3
    torch.testing.assert_close(logits(model), logits(wanted), rtol=0, atol=0)
    assert (logits(model) - logits(gguf_llama(**WIDE))).abs().max() > 1e-3


def test_divisors_that_change_nothing_change_nothing(tmp_path: Path) -> None:
    wanted = gguf_llama(**WIDE)
    more = {"rope_freqs.weight": np.ones(4, np.float32)}
    model, _ = load_base(str(write_gguf(tmp_path / "model.gguf", wanted, more=more)))
    assert torch.equal(logits(model), logits(wanted))


@pytest.mark.parametrize("divisors", [_divisors(4096), np.ones(6, np.float32) * 2])
def test_other_divisors_are_refused(divisors: np.ndarray, tmp_path: Path) -> None:
    more = {"rope_freqs.weight": divisors}
    file = write_gguf(tmp_path / "model.gguf", gguf_llama(**WIDE), more=more)
    assert "rope_freqs.weight, unlike those of Llama 3" in _refused(file).got


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_scaling_that_transformers_does_not_read_is_refused(kind: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", texts={"llama.rope.scaling.type": kind})
    assert _refused(file).got == f"a rotary embedding with scaling {kind!r}"
    same = write_gguf(tmp_path / "none.gguf", texts={"llama.rope.scaling.type": "none"})
    assert _same(load_base(str(same))[0], gguf_llama())
