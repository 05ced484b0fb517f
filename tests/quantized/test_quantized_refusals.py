"""Quantised bases that do not fit, and what cannot be had."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quantized import LINEARS, SIZES, every_kind, linear_layers, save
from runs import logits, run
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    UnsupportedModelError,
)
from skipgpt.model.base import load_base
from skipgpt.model.loading.fingerprint import fingerprint
from skipgpt.model.surgery import add_routers
from tiny import tiny_base


@pytest.mark.parametrize("kind", [None, "8bit"])
def test_a_base_held_in_another_way_is_refused(kind: str | None, checkpoint: Path) -> None:
    path = checkpoint / "skipgpt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": kind}))
    with pytest.raises(CheckpointError, match=r"got base model .* with fingerprint [0-9a-f]{16}"):
        load(checkpoint)


def test_a_base_stored_in_another_kind_is_refused(
    base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    stored = save(load_base(str(base), quantize="8bit")[0], tmp_path / "stored")
    with pytest.raises(CheckpointError, match=r"in 8bit; expected fingerprint [\w-]+ in 4bit"):
        load(checkpoint, base=str(stored))
    with pytest.raises(ConfigError, match="got one that is held in 8bit already"):
        run(stored, tmp_path / "out", quantize="4bit")


def test_a_checkpoint_from_before_there_were_kinds_is_of_an_unquantised_base(
    checkpoint: Path,
) -> None:
    path = checkpoint / "skipgpt_config.json"
    values = json.loads(path.read_text())
    del values["quantization"]
    path.write_text(json.dumps(values))
    assert read_info(checkpoint).quantization is None


@pytest.mark.parametrize("value", ["5bit", 4, ["4bit"]])
def test_a_config_with_an_unknown_kind_is_called_damaged(value: object, checkpoint: Path) -> None:
    path = checkpoint / "skipgpt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": value}))
    with pytest.raises(CheckpointError, match=r"reading the checkpoint .*damaged"):
        read_info(checkpoint)


@every_kind
def test_a_base_stored_quantised_is_loaded_as_it_is_and_trained(
    kind: str, base: Path, tmp_path: Path
) -> None:
    held = load_base(str(base), quantize=kind)[0]
    stored = save(held, tmp_path / "stored")
    for quantize in (None, kind):
        model, _ = load_base(str(stored), quantize=quantize)
        assert fingerprint(model) == fingerprint(held)
        assert torch.equal(logits(model), logits(held))
    result = run(stored, tmp_path / "out")
    assert result.info.quantization == kind
    load(tmp_path / "out")
    load(tmp_path / "out", base=str(base))  # quantised anew, these are the same weights


def test_the_guards_hold_for_bases_stored_quantised(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    outliers = BitsAndBytesConfig(load_in_8bit=True)  # the default threshold of 6
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=outliers)
    stored = save(model, tmp_path / "eight")
    assert json.loads((stored / "config.json").read_text())["quantization_config"][
        "llm_int8_threshold"
    ]
    linears = linear_layers(load_base(str(stored))[0], "8bit").values()
    assert {each.state.threshold for each in linears} == {0.0}

    stored = save(load_base(str(base), quantize="4bit")[0], tmp_path / "four")
    model = load_base(str(stored))[0]
    logits(model)
    linears = linear_layers(model, "4bit").values()
    assert len(linears) == LINEARS
    assert not any(each.support_avx512bf16_for_cpu for each in linears)
    assert all(each.weight.shape == (each.weight.numel(), 1) for each in linears), "repacked"


def test_4_bit_layers_that_a_cpu_unpacks_wrongly_are_refused_by_name(tmp_path: Path) -> None:
    folder = save(tiny_base(**SIZES | {"intermediate_size": 96}), tmp_path / "odd")
    with pytest.raises(UnsupportedModelError, match="loading the base model") as caught:
        load_base(str(folder), quantize="4bit")
    assert "model.layers.0.mlp.down_proj (96)" in caught.value.got
    assert "divisible by the block size, 64" in caught.value.expected
    assert caught.value.todo == "use 8bit, or a GPU"
    load_base(str(folder), quantize="8bit")


def test_more_than_three_such_layers_are_counted(tmp_path: Path) -> None:
    folder = save(tiny_base(), tmp_path / "odd")  # hidden size 32
    with pytest.raises(UnsupportedModelError, match=r"down_proj|q_proj \(32\).* and 18 more"):
        load_base(str(folder), quantize="4bit")


@every_kind
def test_a_base_of_which_nothing_would_be_quantised_is_refused(kind: str, tmp_path: Path) -> None:
    folder = save(tiny_base("falcon"), tmp_path / "base")
    with pytest.raises(UnsupportedModelError, match="got no layer that bitsandbytes quantises"):
        load_base(str(folder), quantize=kind)


def test_an_unknown_kind_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got '2bit'; expected 8bit, 4bit or none"):
        run(base, tmp_path / "out", quantize="2bit")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="got '2bit'"):
        load_base(str(base), quantize="2bit")


@every_kind
def test_without_bitsandbytes_the_install_line_is_printed(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = save(load_base(str(base), quantize=kind)[0], tmp_path / "stored")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for folder, quantize in ((base, kind), (stored, None)):
        with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[quantize\]'"):
            load_base(str(folder), quantize=quantize)
    load_base(str(base))


class _Opaque(nn.Module):
    """What a quantiser might put in the place of a linear layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_a_quantised_projection_that_does_not_tell_its_width_is_refused() -> None:
    model = tiny_base()
    attn = model.model.layers[1].self_attn
    attn.k_proj = _Opaque(attn.k_proj)
    model.is_quantized = True
    with pytest.raises(UnsupportedModelError, match="adding routers") as caught:
        add_routers(model)
    assert caught.value.got == "layers whose self_attn.k_proj has no out_features"


def test_a_base_in_another_format_is_not_quantised_once_more(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skipgpt.model.loading.bitsandbytes import loading_options

    config = SimpleNamespace(quantization_config={"quant_method": "gptq", "bits": 4})
    assert loading_options("4bit", config, torch.float32, "cpu") == {}
    assert loading_options(None, config, torch.float32, "cpu") == {}
    options = loading_options("4bit", SimpleNamespace(), torch.float32, "cpu")
    monkeypatch.setattr("skipgpt.model.base.loading_options", lambda *_: {})
    assert options["device_map"] == {"": "cpu"}
    with pytest.raises(ConfigError, match="held in another format already"):
        run(base, tmp_path / "out", quantize="4bit")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize(("kind", "name"), [("8bit", "SCB"), ("4bit", "weight.absmax")])
def test_a_stored_base_with_too_few_scales_is_refused_by_name(
    kind: str, name: str, base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**{f"load_in_{kind}": True})
    stored = save(
        AutoModelForCausalLM.from_pretrained(base, quantization_config=config), tmp_path / "stored"
    )
    load_base(str(stored))
    file = stored / "model.safetensors"
    tensors = load_file(file)
    scales = f"model.layers.1.self_attn.q_proj.{name}"
    tensors[scales] = tensors[scales][:-1].clone()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=f"another shape of the tensors {scales}"):
        load_base(str(stored))
