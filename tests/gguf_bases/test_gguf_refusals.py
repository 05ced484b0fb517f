"""GGUF files that are no base are refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_files import gguf_llama, write_gguf
from gguf_loading import WIDE, divisors, same_weights
from skipgpt.errors import ConfigError, MissingExtraError, UnsupportedModelError
from skipgpt.model.base import base_config, load_base


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


@pytest.mark.parametrize("divisors", [divisors(4096), np.ones(6, np.float32) * 2])
def test_other_divisors_are_refused(divisors: np.ndarray, tmp_path: Path) -> None:
    more = {"rope_freqs.weight": divisors}
    file = write_gguf(tmp_path / "model.gguf", gguf_llama(**WIDE), more=more)
    assert "rope_freqs.weight, unlike those of Llama 3" in _refused(file).got


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_scaling_that_transformers_does_not_read_is_refused(kind: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", texts={"llama.rope.scaling.type": kind})
    assert _refused(file).got == f"a rotary embedding with scaling {kind!r}"
    same = write_gguf(tmp_path / "none.gguf", texts={"llama.rope.scaling.type": "none"})
    assert same_weights(load_base(str(same))[0], gguf_llama())
