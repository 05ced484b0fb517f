"""Calibration in each unit of a budget, from the passes of one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from runs import rows
from skipgpt.config import Budget, RouterConfig, TimedForward
from skipgpt.cost import savings
from skipgpt.cost.seconds import with_time
from skipgpt.errors import ConfigError
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.model.sparsity import at_sparsity, set_sparsity
from skipgpt.model.state import execution, record_routing, routing_state
from skipgpt.system.device_profile import Machine, store_profile
from skipgpt.system.hardware import hardware
from tiny import tiny_routed

CPU = torch.device("cpu")
MACHINE = Machine(flops=1e9, bandwidth=1e9, mlp_packing=1e-6, attn_packing=1e-6)
"""So slow that products take longer than packing even for a tiny model."""


@pytest.fixture
def _profiled() -> None:
    store_profile(MACHINE, CPU, torch.float32)


@pytest.fixture
def _short_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.1, 0.2, 0.3))


def _model(rank: int = 0) -> nn.Module:
    router = RouterConfig(normalize=True, stand_in=rank)
    return tiny_routed(router=router, initializer_range=0.2)


def _saved(model: nn.Module, blocks: Tensor, unit: Budget) -> float:
    """What a run over blocks saves, counted from its trace alone."""
    with record_routing(model) as trace, torch.no_grad():
        model(input_ids=blocks, use_cache=False)
    context = (blocks.shape[1] + 1) / 2
    return savings(model, unit, context, TimedForward()).share(trace.keep_ratios())


@pytest.mark.usefixtures("_profiled", "_short_curve")
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("unit", ["modules", "flops", "time"])
def test_a_target_is_met_in_its_unit_and_every_curve_rises(unit: Budget, rank: int) -> None:
    model, blocks = _model(rank), rows(64)
    calibrate(model, blocks, target=0.25, budget=unit)
    curves = routing_state(model).curves
    # The search ends within a quarter of a point.
    assert _saved(model, blocks, unit) == pytest.approx(0.25, abs=0.0026)
    assert (curves.budget, set(curves.by_budget)) == (unit, {"modules", "flops", "time"})
    for each, curve in curves.by_budget.items():
        assert all(a < b for a, b in itertools.pairwise(curve.points)), each
        # Below its first point a curve answers that or nothing; here the own unit has one at 0.1.
        for share in (0.1, 0.2) if each == unit else (0.2,):
            with at_sparsity(model, share, budget=each):
                found = _saved(model, blocks, each)
            # Between points a tenth apart, the curve is a straight line.
            assert found == pytest.approx(share, abs=0.03), each


@pytest.mark.usefixtures("_short_curve")
def test_the_flops_of_a_calibrated_model_are_those_that_evaluation_reports() -> None:
    model, blocks = _model(), rows(64)
    calibrate(model, blocks, target=0.2, budget="flops")
    assert perplexity(model, blocks).sparsity["flops"] == pytest.approx(0.2, abs=0.0026)
    set_sparsity(model, 0.2, budget="modules")
    assert perplexity(model, blocks).sparsity["module"] == pytest.approx(0.2, abs=0.03)


@pytest.mark.usefixtures("_profiled", "_short_curve")
def test_the_seconds_that_evaluation_reports_are_those_of_the_calibrated_forward() -> None:
    model, blocks = _model(), rows(64)
    calibrate(model, blocks, target=0.2, budget="time", timed=TimedForward("prefill", 2, 64))
    measured = perplexity(model, blocks)
    assert measured.sparsity["time"] == pytest.approx(0.2, abs=0.0026)
    assert f", time {measured.sparsity['time']:.1%}" in str(measured)
    with execution(model, "dense"):
        assert perplexity(model, blocks).sparsity["time"] == 0


@pytest.mark.usefixtures("_short_curve")
def test_the_curve_in_modules_does_not_depend_on_the_other_units() -> None:
    one, two = _model(), _model()
    curve = calibrate(one, rows(32), target=0.25)
    store_profile(MACHINE, CPU, torch.float32)
    assert calibrate(two, rows(32), target=0.25, budget="modules") == curve


@pytest.mark.usefixtures("_short_curve")
def test_zero_keeps_everything_though_routers_cost() -> None:
    model = _model()
    calibrate(model, rows(8), target=0.0, budget="flops")
    for unit in ("modules", "flops"):
        set_sparsity(model, 0.0, budget=unit)
        assert perplexity(model, rows(8)).sparsity["module"] == 0
    assert _saved(model, rows(8), "flops") < 0


@pytest.mark.usefixtures("_short_curve")
def test_time_without_a_profile_says_to_measure_the_machine() -> None:
    model = _model()
    with pytest.raises(ConfigError) as caught:
        calibrate(model, rows(8), target=0.25, budget="time")
    assert str(caught.value) == (
        "counting a budget in time: got no profile of cpu in float32 on this machine; expected "
        "measured costs of this machine; run `skipgpt profile --device cpu --dtype float32` once, "
        "which takes a few seconds"
    )
    calibrate(model, rows(8))
    assert set(routing_state(model).curves.by_budget) == {"modules", "flops"}


@pytest.mark.usefixtures("_short_curve")
def test_a_profile_made_after_calibration_is_good_for_a_curve_of_time() -> None:
    model, blocks, timed = _model(), rows(64), TimedForward("prefill", 2, 64)
    calibrate(model, blocks, target=0.25, budget="modules", timed=timed)
    state = routing_state(model)
    assert with_time(model, state.curves) == state.curves
    store_profile(MACHINE, CPU, torch.float32)
    state.curves = with_time(model, state.curves)
    set_sparsity(model, 0.15, budget="time")
    # Between points a tenth apart, the curve is a straight line.
    assert perplexity(model, blocks).sparsity["time"] == pytest.approx(0.15, abs=0.03)
    assert state.curves.timed == timed
    assert with_time(model, state.curves) == state.curves


@pytest.mark.usefixtures("_profiled", "_short_curve")
def test_a_curve_of_time_says_of_which_forward_and_hardware_it_speaks() -> None:
    model, timed = _model(), TimedForward("decode", 2, 64)
    calibrate(model, rows(8), timed=timed)
    curves = routing_state(model).curves
    assert curves.timed == timed
    assert curves.hardware == {name: str(value) for name, value in hardware(CPU).items()}
    calibrate(model, rows(8))  # again, as before
    assert routing_state(model).curves.timed == timed


@pytest.mark.usefixtures("_short_curve")
def test_a_forward_takes_a_unit_beside_its_sparsity() -> None:
    model, ids = _model(), rows(4)
    calibrate(model, rows(32), target=0.25, budget="flops")
    with torch.no_grad():
        given = model(input_ids=ids, sparsity=0.2, budget="modules").logits
        with at_sparsity(model, 0.2, budget="modules"):
            inside = model(input_ids=ids).logits
        own = model(input_ids=ids, sparsity=0.2).logits
        with at_sparsity(model, 0.2, budget="flops"):
            assert torch.equal(own, model(input_ids=ids).logits)
    assert torch.equal(given, inside)
    assert not torch.equal(given, own)
    with pytest.raises(ConfigError, match=r"got 'flops' without a sparsity; .*; give a sparsity"):
        model(input_ids=ids, budget="flops")
