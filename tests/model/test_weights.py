"""What is missing, unknown or of another shape is refused by name, however a model is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import skipgpt
import zoo
from cases import families
from lively import build_lively
from runs import logits, make_checkpoint
from skipgpt.checkpoint.folder import digest_of
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe
from skipgpt.errors import CheckpointError, UnsupportedModelError
from skipgpt.model.base import load_base
from skipgpt.model.loading.bitsandbytes import KINDS
from skipgpt.model.surgery import add_routers
from tiny import LONG, byte_tokenizer, tiny_base

Tensors = dict[str, Tensor]
MLP = "model.layers.1.mlp.down_proj.weight"
QUANTIZABLE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def _changed(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    file = next(folder.glob("*.safetensors"))
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def _without(*patterns: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        left = {k: v for k, v in tensors.items() if not any(re.search(p, k) for p in patterns)}
        assert len(left) < len(tensors)
        return left

    return change


def _saved(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _refused(folder: Path, **options: str) -> str:
    with pytest.raises(UnsupportedModelError, match="loading the base model") as caught:
        load_base(str(folder), **options)
    return caught.value.got


CHANGES = {
    "an MLP": (_without(re.escape(MLP)), f"weights without the tensors {MLP}"),
    "a layer": (_without(r"layers\.1\."), "layers.1.input_layernorm.weight"),
    "a norm": (_without(r"model\.norm"), "weights without the tensors model.norm.weight"),
    "a head that is not tied": (_without("lm_head"), "weights without the tensors lm_head.weight"),
    "another shape": (
        lambda tensors: tensors | {MLP: torch.zeros(32, 40)},
        f"weights with another shape of the tensors {MLP} ([32, 40], not [32, 48])",
    ),
    "a bias too many": (
        lambda tensors: tensors | {"model.layers.0.mlp.up_proj.bias": torch.zeros(48)},
        "weights with the unknown tensors model.layers.0.mlp.up_proj.bias",
    ),
    "a layer too many": (
        lambda tensors: tensors | {MLP.replace("1", "3"): torch.zeros(32, 48)},
        "weights with the unknown tensors model.layers.3.mlp.down_proj.weight",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_base_that_is_not_whole_is_refused_by_name(change: str, base_folder: Path) -> None:
    alter, words = CHANGES[change]
    assert words in _refused(_changed(base_folder, alter))


def test_all_that_is_wrong_is_said_at_once(base_folder: Path) -> None:
    change = _without("layers.1.mlp.up_proj", "layers.1.mlp.gate_proj")
    got = _refused(_changed(base_folder, lambda all_: change(all_) | {"x": torch.zeros(1)}))
    assert got == (
        "weights without the tensors model.layers.1.mlp.gate_proj.weight, "
        "model.layers.1.mlp.up_proj.weight and with the unknown tensors x"
    )


def test_a_base_in_several_files_is_held_against_its_parameters(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny_base().save_pretrained(folder, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(folder)
    file = folder / "model.safetensors.index.json"
    place = json.loads(file.read_text())["weight_map"][MLP]
    assert len(list(folder.glob("*.safetensors"))) > 1
    load_base(str(folder))
    shard = folder / place
    save_file(_without(re.escape(MLP))(load_file(shard)), shard, metadata={"format": "pt"})
    assert f"without the tensors {MLP}" in _refused(folder)
    shard.unlink()
    assert place in _refused(folder)


def test_a_base_in_torchs_own_format_is_held_against_its_parameters(base_folder: Path) -> None:
    file = base_folder / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    torch.save(tensors, base_folder / "pytorch_model.bin")
    load_base(str(base_folder))
    torch.save(_without(re.escape(MLP))(tensors), base_folder / "pytorch_model.bin")
    assert f"without the tensors {MLP}" in _refused(base_folder)


EXPERTS = {  # as Mixtral's files name what transformers puts together
    "one matrix of one expert": r"layers\.1\.block_sparse_moe\.experts\.2\.w1",
    "another one": r"layers\.0\.block_sparse_moe\.experts\.3\.w3",
}


@pytest.mark.parametrize("gone", EXPERTS)
def test_a_missing_matrix_of_an_expert_is_named(gone: str, tmp_path: Path) -> None:
    folder = _saved(tiny_base("mixtral", **zoo.ZOO["mixtral"]), tmp_path / "base")
    pattern = EXPERTS[gone]
    assert pattern.replace("\\", "") in _refused(_changed(folder, _without(pattern)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without(re.escape(MLP)), f"without the tensors {MLP}"),
        (
            lambda tensors: tensors | {MLP: torch.randn(64, 64)},
            f"with another shape of the tensors {MLP} ([64, 64], not [64, 128])",
        ),
    ],
)
def test_a_base_to_be_quantised_is_held_against_its_parameters(
    kind: str, change: Callable[[Tensors], Tensors], words: str, tmp_path: Path
) -> None:
    folder = _changed(_saved(tiny_base(**QUANTIZABLE), tmp_path / "base"), change)
    assert words in _refused(folder, quantize=kind)


@pytest.mark.parametrize(
    ("kind", "gone"),
    [("8bit", "weight"), ("8bit", "SCB"), ("4bit", "weight"), ("4bit", "weight.absmax")],
)
def test_a_base_stored_quantised_is_held_against_its_parameters(
    kind: str, gone: str, tmp_path: Path
) -> None:
    plain, stored = _saved(tiny_base(**QUANTIZABLE), tmp_path / "base"), tmp_path / "stored"
    quantized = AutoModelForCausalLM.from_pretrained(
        plain,
        quantization_config=BitsAndBytesConfig(**{f"load_in_{kind}": True}),
        device_map={"": "cpu"},
    )
    _saved(quantized, stored)
    load_base(str(stored))
    name = MLP.replace("weight", gone)
    assert f"without the tensors {name}" in _refused(
        _changed(stored, _without(f"^{re.escape(name)}$"))
    )


LEFT_OUT_OR_OVER: dict[str, Tensors] = {  # tied heads, and what old releases stored
    "bloom": {},
    "gemma2": {},
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8),
        "gpt_neox.layers.1.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(2),
    },
    "llama": {"model.layers.2.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "mellum": {"mtp.layers.0.mlp.up_proj.weight": torch.ones(3, 3)},
    "deepseek_v3": {},
    "falcon": {},
    "gpt_oss": {},
}


@families(zoo.ZOO if LONG else LEFT_OUT_OR_OVER)
def test_what_a_family_leaves_out_or_over_on_purpose_is_let_in(family: str, tmp_path: Path) -> None:
    model = build_lively(family)
    folder = _saved(model, tmp_path / "base")
    _changed(folder, lambda tensors: tensors | LEFT_OUT_OR_OVER.get(family, {}))
    found, _ = load_base(str(folder))
    found.set_attn_implementation(model.config._attn_implementation)
    assert torch.equal(logits(found), logits(model))


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_tied_matrix_that_is_in_no_file_is_missed(name: str, tmp_path: Path) -> None:
    folder = _saved(zoo.build(name, tie_word_embeddings=True), tmp_path / "base")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    got = _refused(_changed(folder, _without("wte", "embed_tokens")))
    assert "wte.weight" in got or "embed_tokens.weight" in got


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_an_expert_that_is_missing_or_of_another_shape_is_named(
    family: str, pickled: bool, tmp_path: Path
) -> None:
    folder = _saved(zoo.build(family), tmp_path / "base")
    whole = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(whole) if re.search(r"layers\.2\..*experts\.1\..*w1|1\.up_", n))

    def written(tensors: Tensors) -> Path:
        if not pickled:
            return _changed(folder, lambda _: tensors)
        (folder / "model.safetensors").unlink(missing_ok=True)
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder

    load_base(str(written(whole)))
    odd = whole[name][:-1].clone()
    assert f"another shape of the tensors {name} (" in _refused(written(whole | {name: odd}))
    rest = {key: tensor for key, tensor in whole.items() if key != name}
    assert f"without the tensors {name}" in _refused(written(rest))


# Merged exports and checkpoints.


@pytest.fixture
def merged(base_folder: Path, tmp_path: Path) -> Path:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "merged"
    make_checkpoint(base_folder, checkpoint)
    skipgpt.export_merged(checkpoint, out)
    skipgpt.register()
    return out


@pytest.mark.parametrize("part", ["attn_router", "mlp.up_proj"])
def test_a_merged_export_without_a_part_is_refused_by_name(part: str, merged: Path) -> None:
    _changed(merged, _without(rf"layers\.2\.{part}"))
    words = re.escape(f"without the tensors model.layers.2.{part}.")
    with pytest.raises(UnsupportedModelError, match=words):
        AutoModelForCausalLM.from_pretrained(merged)


def test_a_merged_export_of_another_rank_of_stand_ins_is_refused_by_name(
    base_folder: Path, tmp_path: Path
) -> None:
    model, _ = load_base(str(base_folder))
    add_routers(model, skipgpt.RouterConfig(stand_in=4))
    info = describe(model, str(base_folder))
    skipgpt.save(model, tmp_path / "checkpoint", info)
    skipgpt.export_merged(tmp_path / "checkpoint", tmp_path / "merged")
    skipgpt.register()
    file = tmp_path / "merged" / "config.json"
    config = json.loads(file.read_text())
    config["router"]["stand_in"] = 2
    file.write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"attn_stand_in\S+ \(\[4, 32\], not \[2, 32\]"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without(r"layers\.1\.self_attn\.q_proj\.lora_A"), "missing base_model.model.model.lay"),
        (lambda tensors: tensors | {"x": torch.zeros(1)}, "unexpected x"),
        (lambda tensors: {k: v[:2] for k, v in tensors.items()}, r"size mismatch for .*lora_A"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused_by_name(
    change: Callable[[Tensors], Tensors], words: str, base_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    make_checkpoint(base_folder, folder, lora=True)
    load(folder)
    _changed(folder / "lora", change)
    file = folder / "skipgpt_config.json"
    values = json.loads(file.read_text())
    key = "lora/adapter_model.safetensors"
    values["files"][key] = digest_of(folder / key)  # as a person would who changed it on purpose
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"loading LoRA from .*{words}"):
        load(folder)
