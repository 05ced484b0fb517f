from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import skipgpt.training.loop.trainer as trainer_module
from cases import routed
from runs import rows, stage_trainer, tiny_config
from skipgpt.config import Stage
from skipgpt.routing.budget import budget_loss
from skipgpt.routing.decision import StraightThrough
from skipgpt.training.loop.trainer import RoutingTrainer

# AdamW divides a gradient by its own size, so that float32 noise of the sums (1e-6 relative)
# reaches an update of 2e-3 a step; a wrong share, sign or mean moves weights by 1e-4 and more.
CLOSE = {"rtol": 0.0, "atol": 5e-6}
WAYS = {
    "whole": {"batch_size": 4, "accumulation": 1},
    "parts": {"batch_size": 1, "accumulation": 4},
}


def _trained(stage: Stage, way: str, folder: Path, **changes: Any) -> RoutingTrainer:
    settings = {
        "target_sparsity": 0.5,
        "router_stage__steps": 3,
        "lora_stage__steps": 3,
        "lora_stage__dropout": 0.0,
        **WAYS[way],
        **changes,
    }
    torch.manual_seed(1)
    trainer = stage_trainer(
        routed(normalize=True), stage, tiny_config("paper", **settings), rows(12), folder
    )
    trainer.train()
    return trainer


def _logged(trainer: RoutingTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("stage", "softness"),
    [("router", 0.0), ("router", 0.1), ("router", 0.5), ("lora", 0.0), ("joint", 0.0)],
)
def test_four_parts_of_one_row_train_as_one_batch_of_four(
    stage: Stage, softness: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoutingTrainer, "rule", lambda self: StraightThrough(2.0))
    sides: list[bool] = []

    def noted(sparsity: Tensor, target: float, whole: Tensor | None, softness: float) -> Tensor:
        if whole is not None:
            sides.append(bool((sparsity > target) == (whole > target)))
        return budget_loss(sparsity, target, whole, softness)

    monkeypatch.setattr(trainer_module, "budget_loss", noted)
    soft = {"router_stage__budget_softness": softness}
    whole, parts = (_trained(stage, way, tmp_path / way, **soft) for way in WAYS)
    trained = [
        (name, one, four)
        for (name, one), four in zip(
            whole.model.named_parameters(), parts.model.parameters(), strict=True
        )
        if one.requires_grad
    ]
    assert trained
    for name, one, four in trained:
        torch.testing.assert_close(four, one, **CLOSE, msg=lambda text, name=name: f"{name} {text}")
    if stage != "lora":
        assert not all(sides), "no part lay on the other side of the target: the test is blunt"
    for one, four in zip(_logged(whole), _logged(parts), strict=True):
        assert four == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("stage", ["router", "joint"])
def test_the_sparsity_measured_beforehand_is_that_of_the_noisy_parts(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []

    def noted(sparsity: Tensor, target: float, whole: Tensor, softness: float) -> Tensor:
        seen.append((sparsity.item(), whole.item()))
        return budget_loss(sparsity, target, whole, softness)

    monkeypatch.setattr(trainer_module, "budget_loss", noted)
    _trained(stage, "parts", tmp_path, lora_stage__dropout=0.1)
    assert len(seen) == 12
    for step in range(3):
        parts, wholes = zip(*seen[4 * step : 4 * step + 4], strict=True)
        assert len(set(wholes)) == 1
        assert len(set(parts)) > 1
        assert wholes[0] == pytest.approx(sum(parts) / 4, abs=1e-6)


def test_measuring_beforehand_does_not_change_the_noise_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At target 0 every part pulls the same way, so that the measurement decides nothing.
    measured = _trained("router", "parts", tmp_path / "measured", target_sparsity=0.0)
    monkeypatch.setattr(RoutingTrainer, "_measure", lambda self, samples: torch.ones(()))
    given = _trained("router", "parts", tmp_path / "given", target_sparsity=0.0)
    for one, other in zip(measured.model.parameters(), given.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_shorter_last_step_of_an_epoch_is_logged_as_what_it_is(tmp_path: Path) -> None:
    model = routed(normalize=True)
    config = tiny_config("paper", **WAYS["parts"], router_stage__steps=3)
    trainer = stage_trainer(model, "router", config, rows(10), tmp_path)
    for layer in model.model.layers:
        for router in (layer.attn_router, layer.mlp_router):
            torch.nn.init.zeros_(router.weight)
            router.bias.data = torch.tensor([-500.0, 500.0])
    trainer.train()
    steps = _logged(trainer)
    assert [line["sparsity"] for line in steps] == pytest.approx([1.0, 1.0, 1.0])
    for line in steps:  # all is skipped, so the loss is the model's plus alpha * (1 - 0.25)
        assert line["loss"] == pytest.approx(line["lm_loss"] + 8 * 0.75, rel=1e-4)
