from pathlib import Path

import pytest
import torch
from torch import nn

from cases import routed
from runs import rows, stage_trainer, tiny_config
from skipgpt.config import Stage

ESTIMATORS = pytest.mark.parametrize("recipe", ["paper", "default"])


def _kind(name: str) -> str:
    kinds = {"_router.": "router", "_stand_in.": "stand_in", "lora_": "lora"}
    return next((kind for part, kind in kinds.items() if part in name), "base")


def _moved(model: nn.Module, stage: Stage, recipe: str, folder: Path) -> dict[str, list[bool]]:
    """Train a stage; by kind of parameter, whether each of them changed at all."""
    config = tiny_config(recipe, lora_stage__warmup=0)
    trainer = stage_trainer(model, stage, config, rows(), folder)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved: dict[str, list[bool]] = {"base": [], "router": [], "stand_in": [], "lora": []}
    for name, parameter in trainer.model.named_parameters():
        moved[_kind(name)].append(not torch.equal(parameter, before[name]))
    return moved


@ESTIMATORS
def test_stage_router_moves_every_router_and_no_base_weight(recipe: str, tmp_path: Path) -> None:
    moved = _moved(routed(normalize=True), "router", recipe, tmp_path)
    assert len(moved["router"]) == 12
    assert all(moved["router"])
    assert moved["base"]
    assert not any(moved["base"])
    assert not moved["lora"]


def test_every_stage_moves_stand_ins_and_stage_lora_no_router(tmp_path: Path) -> None:
    model = routed(normalize=True, stand_in=2)
    moved = _moved(model, "router", "default", tmp_path / "router")
    assert len(moved["stand_in"]) == 18
    assert all(moved["stand_in"])
    assert all(moved["router"])
    assert not any(moved["base"])
    moved = _moved(model, "lora", "default", tmp_path / "lora")
    assert all([*moved["lora"], *moved["stand_in"]])
    assert not any([*moved["router"], *moved["base"]])


def test_stage_joint_moves_stand_ins_too(tmp_path: Path) -> None:
    moved = _moved(routed(normalize=True, stand_in=2), "joint", "default", tmp_path)
    assert all([*moved["stand_in"], *moved["router"], *moved["lora"]])
    assert not any(moved["base"])


def test_where_layers_decide_whole_their_attention_router_is_what_trains(tmp_path: Path) -> None:
    model = routed(decides="layer")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stage_trainer(model, "router", tiny_config("default"), rows(), tmp_path).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "attn_router." in name}


def test_stage_lora_moves_every_adapter_and_neither_routers_nor_base(tmp_path: Path) -> None:
    moved = _moved(routed(normalize=True), "lora", "default", tmp_path)
    assert len(moved["lora"]) == 3 * 7 * 2  # layers, linear layers in each, matrices of each
    assert all(moved["lora"])
    assert not any(moved["router"])
    assert not any(moved["base"])


@ESTIMATORS
def test_stage_joint_moves_routers_and_adapters_and_no_base_weight(
    recipe: str, tmp_path: Path
) -> None:
    moved = _moved(routed(normalize=True), "joint", recipe, tmp_path)
    assert all(moved["router"])
    assert all(moved["lora"])
    assert len(moved["lora"]) == 3 * (7 if recipe == "default" else 3) * 2
    assert not any(moved["base"])
