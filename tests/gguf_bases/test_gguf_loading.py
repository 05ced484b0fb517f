"""A GGUF file is loaded as the model that was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import nn
from transformers import AutoModelForCausalLM

from gguf_files import BOS, EOS, PAIR, Q4_1, Q8_0, SIZES, gguf_llama, write_gguf
from gguf_loading import WIDE, divisors, same_weights
from runs import logits
from skipgpt.model.base import base_config, base_location, load_base
from skipgpt.model.loading.fingerprint import fingerprint
from skipgpt.model.loading.gguf import is_gguf
from skipgpt.model.surgery import add_routers
from tiny import tiny_base


def test_the_model_is_the_one_that_was_written(file: Path) -> None:
    model, _ = load_base(str(file))
    wanted = gguf_llama()
    assert same_weights(model, wanted)
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
    assert same_weights(model, wanted)
    assert not same_weights(model, gguf_llama())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_transformers_reads_the_same_weights_of_the_file(dtype: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind=Q8_0)
    wanted = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=getattr(torch, dtype)
    )
    model, _ = load_base(str(file), dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert same_weights(model, wanted)


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
    assert same_weights(load_base(str(file))[0], wanted)


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
    assert same_weights(model, gguf_llama())
    assert tokenizer.eos_token_id == EOS
    assert model.name_or_path == tokenizer.name_or_path == base_location("../model.gguf")


def test_a_link_keeps_its_name(file: Path, tmp_path: Path) -> None:
    blob = shutil.move(file, tmp_path / "0c0ffee")
    file.symlink_to(blob)
    assert base_location(str(file)) == str(file)
    assert same_weights(load_base(str(file))[0], gguf_llama())


def test_names_end_in_gguf_and_a_folder_is_a_folder(tmp_path: Path) -> None:
    assert is_gguf("a/b.gguf")
    assert is_gguf("B.GGUF")
    assert not is_gguf("owner/model-GGUF")
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(str(tmp_path / "folder.gguf"))


LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_rotary_embedding_of_llama_3_is_kept(tmp_path: Path) -> None:
    found = divisors()
    assert found[0] == 1 < found[2] < found[3] == 32
    wanted = gguf_llama(rope_parameters=LLAMA_3)
    more = {"rope_freqs.weight": found}
    model, _ = load_base(str(write_gguf(tmp_path / "model.gguf", wanted, more=more)))
    assert model.config.rope_parameters == LLAMA_3
    torch.testing.assert_close(logits(model), logits(wanted), rtol=0, atol=0)
    assert (logits(model) - logits(gguf_llama(**WIDE))).abs().max() > 1e-3


def test_divisors_that_change_nothing_change_nothing(tmp_path: Path) -> None:
    wanted = gguf_llama(**WIDE)
    more = {"rope_freqs.weight": np.ones(4, np.float32)}
    model, _ = load_base(str(write_gguf(tmp_path / "model.gguf", wanted, more=more)))
    assert torch.equal(logits(model), logits(wanted))
