"""A threshold that saves a share of what decisions cost, where they do not cost the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgpt.routing.calibration import Seen, find_threshold, quantile_threshold

decisions = st.lists(
    st.tuples(st.integers(-1000, 1000), st.floats(0.0, 1.0)),
    min_size=2,
    max_size=30,
    unique_by=lambda pair: pair[0],
)


@given(decisions=decisions, share=st.floats(0.0, 1.0))
def test_it_saves_what_is_nearest_of_all_thresholds(
    decisions: list[tuple[int, float]], share: float
) -> None:
    margins = torch.tensor([float(margin) for margin, _ in decisions])
    weights = torch.tensor([weight for _, weight in decisions], dtype=torch.float64)
    wanted = share * weights.sum().item()

    def miss(threshold: float) -> float:
        return abs(weights[margins <= threshold].sum().item() - wanted)

    levels = sorted(margins.tolist())
    between = [(low + high) / 2 for low, high in itertools.pairwise(levels)]
    found = quantile_threshold(margins, wanted, weights)
    assert found in between
    # Sums of at most 30 numbers up to 1, in another order.
    assert miss(found) <= min(map(miss, between)) + 1e-12


def test_equal_weights_give_the_quantile_of_the_margins() -> None:
    margins = torch.randn(1000)
    weights = torch.full((1000,), 1e-3)
    for share in (0.05, 0.25, 0.8):
        threshold = quantile_threshold(margins, share, weights)
        assert (margins <= threshold).sum().item() == round(1000 * share)


def test_what_costs_more_than_it_saves_meets_no_budget() -> None:
    margins, weights = torch.tensor([-3.0, -2.0, -1.0, 5.0]), torch.tensor([-9.0, 0.2, 0.2, 0.6])
    assert quantile_threshold(margins, 0.4, weights) == 2.0


@pytest.mark.parametrize("target", [0.1, 0.3, 0.6])
def test_the_search_meets_a_target_of_weighted_decisions_beside_what_routing_adds(
    target: float,
) -> None:
    margins = torch.randn(4000)
    weights = torch.rand(4000) / 2000
    overhead = 0.02

    def seen_at(threshold: float) -> Seen:
        share = weights[margins <= threshold].sum().item() - overhead
        return Seen(margins, share, weights, overhead)

    threshold = find_threshold(seen_at, target, start=-5.0)
    assert seen_at(threshold).share == pytest.approx(target, abs=0.0025)
