"""Stage lora decides at a threshold that follows the budget."""

from pathlib import Path

import pytest
import torch

from runs import metrics, run, tiny_config
from skipgpt.config import RouterConfig
from skipgpt.cost import Savings
from skipgpt.model.state import RoutingState
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.routing.decision import DecisionRule, RandomRoutes, Site, Threshold
from skipgpt.training.loop.budget_threshold import BudgetThreshold

A, B = Site(0, "attn"), Site(0, "mlp")
MODULES = Savings("modules", {A: 0.5, B: 0.5})


def _state(rule: DecisionRule) -> RoutingState:
    state = RoutingState(RouterConfig(), rule)
    state.curves = Curves.of_modules(CalibrationCurve(((0.0, -torch.inf), (0.5, 0.0))))
    return state


def _after(steps: int, follower: BudgetThreshold, margins: torch.Tensor) -> float:
    for _ in range(steps):
        for part in margins.chunk(2, dim=1):  # two micro-batches
            follower.observe(part)
        follower.on_step_end(None, None, None)
    return follower.state.rule.value


def test_the_threshold_goes_to_where_the_margins_meet_the_target() -> None:
    margins = torch.arange(100.0).reshape(2, 50)
    first = _after(1, BudgetThreshold(_state(Threshold(0.0)), 0.3, MODULES), margins)
    assert first == pytest.approx(2.95, abs=0.06)
    late = _after(80, BudgetThreshold(_state(Threshold(0.0)), 0.3, MODULES), margins)
    assert late == pytest.approx(29.5, abs=0.6)


def test_in_another_unit_modules_count_what_they_save() -> None:
    margins = torch.stack([torch.arange(50.0), torch.arange(50.0) + 100])
    # All of the first module saves 0.2, less an overhead of 0.1: to save 0.2, 0.1 of the second go.
    savings = Savings("flops", {A: 0.2, B: 0.5}, 0.1)
    follower = BudgetThreshold(_state(Threshold(0.0)), 0.2, savings)
    assert _after(120, follower, margins) == pytest.approx(109.5, abs=0.6)


def test_the_share_is_the_one_that_calibration_counts() -> None:
    """Pairs of queries and keys save with the square of what is kept."""
    margins = torch.stack([torch.arange(100.0), torch.full((100,), 1000.0)])
    savings = Savings("flops", {A: 0.5, B: 0.5}, 0.0, {A: 0.4})
    found = _after(120, BudgetThreshold(_state(Threshold(50.0)), 0.2, savings), margins)
    keep = (margins[0] > found).float().mean().item()
    assert savings.share({A: keep, B: 1.0}) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("target", [0.3, 0.4])
def test_where_margins_are_equal_the_modules_that_run_stay_the_same(target: float) -> None:
    margins = torch.tensor([[-1.0], [1.0]]).expand(2, 50)
    follower = BudgetThreshold(_state(Threshold(0.0)), target, MODULES)
    found = [_after(1, follower, margins) for _ in range(400)]
    assert all(-1.0 <= at < 1.0 for at in found)


@pytest.mark.parametrize("rule", [RandomRoutes(0.25), Threshold(-torch.inf)])
def test_keeping_everything_and_other_rules_stay_as_they_are(
    rule: RandomRoutes | Threshold,
) -> None:
    follower = BudgetThreshold(_state(rule), 0.3, MODULES)
    follower.observe(torch.randn(2, 50))
    follower.on_step_end(None, None, None)
    assert follower.state.rule is rule


def test_a_model_that_was_never_calibrated_keeps_its_threshold() -> None:
    state = RoutingState(RouterConfig(), Threshold(0.0))
    assert _after(3, BudgetThreshold(state, 0.3, MODULES), torch.randn(2, 50)) == 0.0


def test_healing_keeps_to_the_budget_however_far_it_moves_the_margins(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        "default",
        stages="fit,lora",
        target_sparsity=0.3,
        lora_stage__steps=40,
        lora_stage__learning_rate=0.03,
        lora_stage__targets="query-value-gate",
        lora_stage__distill=0.0,
    )
    run(base_folder, tmp_path / "out", config)
    lines = [line for line in metrics(tmp_path / "out") if line["stage"] == "lora"]
    assert lines[-1]["threshold"] != pytest.approx(lines[0]["threshold"], abs=0.05)
    late = [line["sparsity"] for line in lines[-10:]]
    assert sum(late) / len(late) == pytest.approx(0.3, abs=0.03)
