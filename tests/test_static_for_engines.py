"""Layers that lack a module: how they are chosen and written. What vLLM makes of them: serving/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from command import skipgpt as command
from runs import write_documents
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.export import export_static
from skipgpt.export.decilm import choose_layers
from skipgpt.model.base import load_base
from skipgpt.model.surgery import add_routers, routers
from skipgpt.routing.decision import Site
from skipgpt.routing.router import set_constant
from tiny import byte_tokenizer, tiny_base

SITES = [Site(layer, module) for layer in range(4) for module in ("attn", "mlp")]
CUTTING = DataConfig(block_size=16, held_out=0.3, calibration_tokens=128, evaluation_tokens=128)


def checkpoint(folder: Path, skipped: list[Site], family: str = "llama") -> Path:
    tiny_base(family, initializer_range=0.2).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model, _ = load_base(str(folder / "base"))
    add_routers(model, RouterConfig())
    for site, router in routers(model).items():
        set_constant(router, -1.0 if site in skipped else 1.0)
    save(model, folder / "checkpoint", describe(model, str(folder / "base")))
    return folder / "checkpoint"


@given(st.sets(st.sampled_from(SITES), max_size=len(SITES)))
def test_what_is_to_go_goes_but_for_an_attention_to_begin_with(gone: set[Site]) -> None:
    rates = {site: 1 / (number + 1) for number, site in enumerate(SITES)}
    layers = choose_layers(SITES, gone, rates)
    held = [
        Site(layer, module)
        for pair in layers
        for layer, module in zip(pair, ("attn", "mlp"), strict=True)
        if layer is not None
    ]
    assert held == sorted(held, key=SITES.index)
    assert held[0].module == "attn"
    assert set(held[1:]) == set(SITES) - gone - {held[0]}
    assert held[0] not in gone or not set(SITES[: SITES.index(held[1]) if held[1:] else 8]) - gone


def test_the_folder_says_which_layer_lacks_what(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, [Site(1, "attn")])
    data = [str(write_documents(tmp_path))]
    result = export_static(source, tmp_path / "out", data=data, cutting=CUTTING, form="vllm")
    assert result.removed == (Site(1, "attn"),)
    assert result.kept_anyway == ()
    assert result.losses["static"] == pytest.approx(result.losses["routed"], abs=1e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    blocks = config["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, True, False]
    assert not any(block["ffn"]["no_op"] for block in blocks)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    lacking = {name for name in base if name.startswith("model.layers.1.self_attn.")}
    lacking.add("model.layers.1.input_layernorm.weight")
    assert weights.keys() == base.keys() - lacking
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights.items())
    assert result.parameters_after == sum(tensor.numel() for tensor in weights.values())


def test_a_family_that_the_class_does_not_know_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, [Site(1, "attn")], "qwen3")
    data = [str(write_documents(tmp_path))]
    with pytest.raises(UnsupportedModelError, match=r"qwen3.*llama, mistral or qwen2"):
        export_static(source, tmp_path / "out", data=data, cutting=CUTTING, form="vllm")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, [Site(1, "attn")])
    data = [str(write_documents(tmp_path))]
    with pytest.raises(ConfigError, match="transformers or vllm"):
        export_static(source, tmp_path / "out", data=data, form="gguf")  # type: ignore[arg-type]
    done = command("export", source, "--merged", "--format", "vllm", "--out", tmp_path / "out")
    assert done.status != 0
    assert "--format" in done.stderr
