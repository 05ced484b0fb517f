"""Stage lora decides at a threshold that follows the budget."""

from pathlib import Path

import pytest
import torch

from runs import metrics, run, tiny_config
from skipgpt.config import RouterConfig
from skipgpt.model.state import RoutingState
from skipgpt.routing.decision import RandomRoutes, Threshold
from skipgpt.training.loop.budget_threshold import BudgetThreshold


def _after(steps: int, follower: BudgetThreshold, margins: torch.Tensor) -> float:
    for _ in range(steps):
        for part in margins.chunk(2, dim=1):  # two micro-batches
            follower.observe(part)
        follower.on_step_end(None, None, None)
    return follower.value


def test_the_threshold_goes_to_where_the_margins_meet_the_target() -> None:
    state = RoutingState(RouterConfig(), Threshold(0.0))
    margins = torch.arange(100.0).reshape(2, 50)
    assert _after(1, BudgetThreshold(state, 0.3, None, 0.0), margins) == pytest.approx(2.95)
    assert _after(80, BudgetThreshold(state, 0.3, None, 0.0), margins) == pytest.approx(
        29.5, abs=0.05
    )


def test_in_another_unit_modules_count_what_they_save() -> None:
    state = RoutingState(RouterConfig(), Threshold(0.0))
    margins = torch.stack([torch.arange(50.0), torch.arange(50.0) + 100])
    # All of the first module saves 0.2, less an overhead of 0.1: to save 0.2, 0.1 of the second go.
    follower = BudgetThreshold(state, 0.2, torch.tensor([0.2, 0.5]), 0.1)
    assert _after(120, follower, margins) == pytest.approx(109.5, abs=0.05)


@pytest.mark.parametrize("rule", [RandomRoutes(0.25), Threshold(-torch.inf)])
def test_keeping_everything_and_other_rules_stay_as_they_are(
    rule: RandomRoutes | Threshold,
) -> None:
    state = RoutingState(RouterConfig(), rule)
    _after(3, BudgetThreshold(state, 0.3, None, 0.0), torch.randn(2, 50))
    assert state.rule is rule


def test_healing_keeps_to_the_budget_however_far_it_moves_the_margins(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        "default",
        stages="fit,lora",
        target_sparsity=0.3,
        lora_stage__steps=40,
        lora_stage__learning_rate=0.03,
        lora_stage__distill=0.0,
    )
    run(base_folder, tmp_path / "out", config)
    lines = [line for line in metrics(tmp_path / "out") if line["stage"] == "lora"]
    assert lines[-1]["threshold"] != pytest.approx(lines[0]["threshold"], abs=0.05)
    late = [line["sparsity"] for line in lines[-10:]]
    assert sum(late) / len(late) == pytest.approx(0.3, abs=0.03)
