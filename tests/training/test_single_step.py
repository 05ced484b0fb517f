"""One optimizer step outside a run is the first step of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from runs import rows, stage_trainer, tiny_config
from skipgpt.config import Stage, TrainConfig
from skipgpt.model.state import execution
from skipgpt.routing.decision import StraightThrough
from skipgpt.training.loop.single_step import single_step
from skipgpt.training.loop.trainer import RoutingTrainer
from tiny import tiny_base, tiny_routed

IDS = rows(2)


def config() -> TrainConfig:
    """The first step of a run has its whole learning rate only where nothing warms up."""
    flat = {f"{s}_stage__schedule": "constant" for s in ("router", "lora")}
    none = {f"{s}_stage__warmup": 0.0 for s in ("router", "lora")}
    return tiny_config(**flat, **none, lora_stage__dropout=0.0, max_grad_norm=0.5)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What trains, under the names that it has outside PEFT's wrapper."""
    return {
        name.removeprefix("base_model.model."): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("stage", ["router", "lora", "joint"])
def test_it_moves_weights_as_the_first_step_of_a_run_does(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run draws its rows in any order, and noise with them.
    monkeypatch.setattr(RoutingTrainer, "rule", lambda self: StraightThrough(2.0))
    models = [tiny_routed(), tiny_routed()]
    torch.manual_seed(7)
    trainer = stage_trainer(models[0], stage, config(), IDS, tmp_path)
    trainer.args.max_steps = 1
    trainer.train()
    torch.manual_seed(7)
    step = single_step(models[1], stage, config(), IDS)
    start = trained(models[1])
    step()
    moved, expected = trained(models[1]), trained(trainer.model)
    assert moved.keys() == expected.keys()
    assert any(not torch.equal(moved[name], start[name]) for name in start)
    for name, tensor in expected.items():
        # AdamW divides a gradient by its own size: float32 noise reaches an update of 2e-3.
        torch.testing.assert_close(moved[name], tensor, rtol=0.0, atol=5e-6, msg=name)


def test_without_routers_the_dense_model_learns() -> None:
    model = tiny_base()
    step = single_step(model, "lora", config(), IDS)
    first, *_, last = (step().item() for _ in range(30))
    assert last < first
    assert any("lora_" in name for name in trained(model))
    assert all("lora_" in name for name in trained(model))


def test_another_execution_may_be_asked_for() -> None:
    losses = []
    for kind in ("sparse", "gated", "dense"):
        torch.manual_seed(7)
        model = tiny_routed()
        step = single_step(model, "lora", tiny_config(lora_stage__dropout=0.0), IDS, kind)
        with execution(model, "sparse"):
            losses.append(step().item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != pytest.approx(losses[2], abs=1e-3)
