"""Curves of several units: which is meant, what is said where there is none, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from skipgpt.config import Budget, TimedForward
from skipgpt.errors import ConfigError
from skipgpt.routing.curve import CalibrationCurve, Curves

MODULES = CalibrationCurve(((0.0, -math.inf), (0.25, 1.0), (0.5, 2.0)))
FLOPS = CalibrationCurve(((0.0, -math.inf), (0.2, 1.0), (0.4, 2.0)))
BOTH = Curves({"modules": MODULES, "flops": FLOPS}, "flops")


def test_the_unit_of_training_is_meant_where_none_is_named() -> None:
    assert BOTH.threshold_at(0.2) == BOTH.threshold_at(0.25, "modules") == 1.0
    assert BOTH.clamp(0.9) == 0.4
    assert BOTH.clamp(0.9, "modules") == 0.5


def test_zero_keeps_everything_in_every_unit() -> None:
    assert BOTH.threshold_at(0.0) == BOTH.threshold_at(0.0, "modules") == -math.inf


def test_a_unit_without_a_curve_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        Curves.of_modules(MODULES).threshold_at(0.25, "flops")
    assert str(caught.value) == (
        "setting the sparsity in FLOPs: got a model that was calibrated in modules only; expected "
        "one with a calibration curve of FLOPs; train it with `skipgpt train`, or calibrate it "
        'again with skipgpt.calibrate(model, blocks, budget="flops")'
    )


def test_time_needs_a_profile_first() -> None:
    with pytest.raises(ConfigError, match=r"modules and FLOPs only; .* run `skipgpt profile` on"):
        BOTH.threshold_at(0.25, "time")


def test_curves_that_know_what_was_kept_need_nothing_but_a_profile() -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(BOTH, keep_at=((1.0, 0.5, 0.5),)).threshold_at(0.25, "time")
    assert str(caught.value) == (
        "setting the sparsity in time: got a machine that was not profiled; expected measured "
        "costs of the device and dtype that the model is in; run `skipgpt profile` for these once, "
        "then load the model again"
    )


def test_curves_of_higher_margins_are_higher_in_all_that_they_hold() -> None:
    both = dataclasses.replace(BOTH, keep_at=((1.0, 0.5, 0.25), (2.0, 0.0, 0.125))).shifted(0.5)
    assert both.by_budget["modules"].points == ((0.0, -math.inf), (0.25, 1.5), (0.5, 2.5))
    assert both.keep_at == ((1.5, 0.5, 0.25), (2.5, 0.0, 0.125))


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 'joules'; expected modules, flops or time"):
        BOTH.threshold_at(0.25, "joules")  # type: ignore[arg-type]


def test_the_end_of_a_curve_is_that_of_its_unit() -> None:
    for budget in (None, "flops"):
        with pytest.raises(ConfigError) as caught:
            BOTH.threshold_at(0.5, budget)
        assert str(caught.value) == (
            "setting the sparsity in FLOPs: got 0.5; expected at most 0.40 of the FLOPs, the end "
            "of the calibrated curve"
        )


@pytest.mark.parametrize(
    ("budget", "noun"), [(None, "FLOPs"), ("flops", "FLOPs"), ("modules", "modules")]
)
def test_a_sparsity_out_of_range_is_told_in_the_unit_that_it_counts(
    budget: Budget | None, noun: str
) -> None:
    with pytest.raises(ConfigError, match=f"; 0.25 saves a quarter of the {noun}$"):
        BOTH.threshold_at(0.97, budget)


@pytest.mark.parametrize(
    "curves",
    [
        BOTH,
        Curves.of_modules(MODULES),
        Curves(
            {"modules": MODULES, "time": FLOPS},
            "time",
            TimedForward("decode", 4, 2048),
            {"device": "an abacus"},
            ((1.0, 0.5, 0.25), (2.0, 0.0, 0.125)),
        ),
    ],
)
def test_json_gives_the_same_curves_back(curves: Curves) -> None:
    text = json.dumps(curves.to_json(), allow_nan=False)
    assert Curves.from_json(json.loads(text)).by_budget == curves.by_budget
    assert Curves.from_json(json.loads(text)) == curves


def test_a_curve_in_json_writes_null_for_keeping_everything() -> None:
    assert MODULES.to_json() == ((0.0, None), (0.25, 1.0), (0.5, 2.0))
    assert CalibrationCurve.from_json(MODULES.to_json()) == MODULES


def test_a_rising_curve_leaves_out_what_saves_no_more() -> None:
    points = [(-0.01, -3.0), (0.1, -2.0), (0.08, -1.0), (0.3, 0.0)]
    kept = ((0.0, -math.inf), (0.1, -2.0), (0.3, 0.0))
    assert CalibrationCurve.rising(points).points == kept
