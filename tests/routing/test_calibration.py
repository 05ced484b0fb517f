import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from skipgpt.errors import ConfigError
from skipgpt.routing.calibration import (
    CURVE,
    CalibrationCurve,
    Seen,
    calibrate_curve,
    find_threshold,
    quantile_threshold,
)

numbers = st.floats(-100, 100, width=32)
curves = st.lists(st.tuples(st.floats(0.01, 0.95), numbers), min_size=2, max_size=8).map(
    lambda points: CalibrationCurve(
        (
            (0.0, -math.inf),
            *zip(
                sorted({s for s, _ in points}),
                sorted(t for _, t in points),
                strict=False,
            ),
        )
    )
)


@given(curve=curves, sparsity=st.floats(0.001, 0.95))
def test_a_curve_stays_within_its_thresholds_and_rises(
    curve: CalibrationCurve, sparsity: float
) -> None:
    finite = [t for _, t in curve.points if math.isfinite(t)]
    threshold = curve.threshold(sparsity)
    keeps_all = threshold == -math.inf
    assert keeps_all or min(finite) - 1e-6 <= threshold <= max(finite) + 1e-6
    assert curve.threshold(min(0.95, sparsity + 0.01)) >= threshold - 1e-6


@given(curve=curves)
def test_a_curve_goes_through_its_points(curve: CalibrationCurve) -> None:
    for sparsity, threshold in curve.points:
        assert curve.threshold(sparsity) == pytest.approx(threshold, rel=1e-6, abs=1e-6)


@given(curve=curves, way=st.floats(0.0, 1.0))
def test_a_curve_is_linear_between_neighbours(curve: CalibrationCurve, way: float) -> None:
    for (low, at_low), (high, at_high) in itertools.pairwise(curve.points[1:]):
        if high - low < 1e-6:  # a slope that rounding decides
            continue
        expected = at_low + way * (at_high - at_low)
        # The way is recovered from sparsities 1e-6 apart at least: 1e-16 / 1e-6 of 200.
        assert curve.threshold(low + way * (high - low)) == pytest.approx(expected, abs=1e-6)


def test_sparsity_zero_keeps_everything_calibrated_or_not() -> None:
    assert CalibrationCurve(((0.3, 1.0),)).threshold(0) == -math.inf
    assert CalibrationCurve(()).threshold(0) == -math.inf


def test_beyond_its_ends_a_curve_answers_its_nearest_point() -> None:
    curve = CalibrationCurve(((0.0, -math.inf), (0.1, -1.0), (0.4, 2.0)))
    assert curve.threshold(0.04) == -math.inf
    assert curve.threshold(0.06) == -1.0
    assert curve.threshold(0.9) == 2.0
    assert curve.largest == 0.4


@pytest.mark.parametrize("sparsity", [-0.1, 0.96, math.nan])
def test_a_sparsity_out_of_range_is_refused_in_words(sparsity: float) -> None:
    with pytest.raises(ConfigError) as caught:
        CalibrationCurve(((0.3, 1.0),)).threshold(sparsity)
    assert str(caught.value) == (
        f"reading sparsity: got {sparsity}; expected a share from 0 to 0.95; "
        "0.25 saves a quarter of the cost"
    )


def alike(margins: Tensor) -> Tensor:
    """Weights of decisions that all save the same."""
    return torch.full_like(margins, 1 / len(margins), dtype=torch.float64)


def skipped_share(margins: Tensor, threshold: float) -> float:
    return (margins <= threshold).float().mean().item()


# Whole numbers, so that distinct margins lie far enough apart for a midpoint to exist.
@given(
    values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=60, unique=True),
    sparsity=st.floats(0.0, 1.0),
)
def test_a_quantile_threshold_skips_the_nearest_count_of_distinct_margins(
    values: list[int], sparsity: float
) -> None:
    assume(abs(sparsity * len(values) % 1 - 0.5) > 1e-6)  # two are as near
    margins = torch.tensor(values, dtype=torch.float32)
    threshold = quantile_threshold(margins, sparsity, alike(margins))
    # One margin at least on either side.
    expected = min(len(values) - 1, max(1, round(sparsity * len(values))))
    assert int((margins <= threshold).sum()) == expected
    assert threshold not in values


@given(
    values=st.lists(st.integers(-3, 3), min_size=2, max_size=60),
    sparsity=st.floats(0.0, 1.0),
)
def test_ties_fall_on_one_side_together(values: list[int], sparsity: float) -> None:
    assume(abs(sparsity * len(values) % 1 - 0.5) > 1e-6)  # two are as near
    margins = torch.tensor(values, dtype=torch.float32)
    wanted = min(len(values) - 1, max(1, round(sparsity * len(values))))
    skipped = int((margins <= quantile_threshold(margins, sparsity, alike(margins))).sum())
    counts = [sum(v <= level for v in values) for level in sorted(set(values))]
    # The first level whose ties reach the wanted count.
    assert skipped == next(count for count in counts if count >= wanted)


def test_constant_routers_are_parted_clearly() -> None:
    margins = torch.tensor([-4.0] * 25 + [4.0] * 75)
    assert quantile_threshold(margins, 0.25, alike(margins)) == 0.0


def seen(margins_at: Callable[[float], Tensor]) -> Callable[[float], Seen]:
    """What is measured where every decision saves the same."""

    def seen_at(threshold: float) -> Seen:
        margins = margins_at(threshold)
        return Seen(margins, skipped_share(margins, threshold), alike(margins))

    return seen_at


def still(margins: Tensor) -> Callable[[float], Tensor]:
    """Margins that do not depend on the threshold."""
    return lambda threshold: margins


def moving(margins: Tensor, shift: float) -> Callable[[float], Tensor]:
    """Margins that rise as more is skipped, as later routers' do."""
    return lambda threshold: margins + shift * skipped_share(margins, threshold)


@pytest.mark.parametrize("sparsity", [0.05, 0.25, 0.8])
@pytest.mark.parametrize("start", [-math.inf, 0.0, 50.0])
def test_calibration_hits_the_target_when_margins_stand_still(
    sparsity: float, start: float
) -> None:
    margins = torch.randn(1000)
    threshold = find_threshold(seen(still(margins)), sparsity, start)
    # A thousand margins: a share is exact to one of them.
    assert skipped_share(margins, threshold) == pytest.approx(sparsity, abs=1e-3)


@pytest.mark.parametrize("shift", [-0.5, 0.5])
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_calibration_hits_the_target_when_skipping_moves_the_margins(
    shift: float, sparsity: float
) -> None:
    margins_at = moving(torch.randn(4000), shift)
    threshold = find_threshold(seen(margins_at), sparsity, 0.0)
    # It stops within a quarter of a point.
    assert skipped_share(margins_at(threshold), threshold) == pytest.approx(sparsity, abs=0.0026)


def test_calibration_returns_the_closest_guess_when_it_never_settles() -> None:
    made: list[tuple[float, float]] = []

    def margins_at(threshold: float) -> Tensor:
        margins = torch.randn(50, generator=torch.Generator().manual_seed(len(made)))
        made.append((abs(skipped_share(margins, threshold) - 0.5), threshold))
        return margins

    threshold = find_threshold(seen(margins_at), 0.5, 3.0, rounds=4)
    assert threshold == min(made)[1]
    assert len(made) <= 8


def _collapsing(threshold: float) -> Tensor:
    """As of routers that read a stream of which too little is left: past 0.4 all margins fall."""
    margins = torch.linspace(-2, 6, 1000)
    return margins if threshold < 0.4 else margins - 100


def test_a_guess_that_skips_everything_is_not_the_last_word() -> None:
    threshold = find_threshold(seen(_collapsing), 0.25, 90.0)
    assert skipped_share(_collapsing(threshold), threshold) == pytest.approx(0.25, abs=0.0026)


def test_where_sparsity_jumps_the_nearer_side_is_returned() -> None:
    threshold = find_threshold(seen(_collapsing), 0.35, 0.0)
    assert threshold < 0.4
    assert skipped_share(_collapsing(threshold), threshold) == pytest.approx(0.3, abs=0.03)


def test_points_of_a_curve_are_counted_when_they_are_done() -> None:
    told: list[tuple[int, int, int]] = []
    measured: list[float] = []

    def seen_at(threshold: float) -> Seen:
        measured.append(threshold)
        return seen(still(torch.linspace(-2, 2, 1000)))(threshold)

    points = (0.0, 0.2, 0.4, 0.6)
    calibrate_curve(
        seen_at, points, on_point=lambda done, total: told.append((done, total, len(measured)))
    )
    # Everything kept is measured first, and each of the other points once, since margins stand.
    assert told == [(1, 4, 1), (2, 4, 2), (3, 4, 3), (4, 4, 4)]


def test_a_curve_ends_where_a_little_more_would_skip_everything() -> None:
    curve = calibrate_curve(seen(_collapsing))
    assert 0.25 <= curve.largest < 0.31
    assert not curve.reaches(0.4)
    for sparsity in (0.05, 0.1, 0.15, 0.2, 0.25):
        threshold = curve.threshold(sparsity)
        assert skipped_share(_collapsing(threshold), threshold) == pytest.approx(sparsity, abs=0.01)


def test_a_whole_curve_reaches_each_of_its_sparsities() -> None:
    margins_at = moving(torch.randn(4000), 0.3)
    curve = calibrate_curve(seen(margins_at), rounds=6)
    assert curve.points[0] == (0.0, -math.inf)
    assert len(curve.points) == len(CURVE) == 17
    for sparsity in CURVE[1:]:
        threshold = curve.threshold(sparsity)
        reached = skipped_share(margins_at(threshold), threshold)
        assert reached == pytest.approx(sparsity, abs=0.005)


def test_a_curve_keeps_only_points_that_reach_further() -> None:
    """Constant routers know few sparsities; equal points would be steps of no width."""
    curve = calibrate_curve(seen(still(torch.tensor([-4.0] * 25 + [4.0] * 50 + [9.0] * 25))))
    reached = [sparsity for sparsity, _ in curve.points]
    assert reached == [0.0, 0.25, 0.75]
