"""The two searches, on made-up losses."""

from __future__ import annotations

import math
import random

import pytest

from skipgpt.errors import ConfigError
from skipgpt.removal.search import lazy_greedy, one_by_one, one_shot
from skipgpt.removal.units import Unit
from skipgpt.routing.decision import Site

UNITS: list[Unit] = [(Site(n, "attn"), Site(n, "mlp")) for n in range(5)]
COSTS = dict(zip(UNITS, (3.0, 1.0, 5.0, 0.0, 2.0), strict=True))
RANKED = [UNITS[n] for n in (3, 1, 4, 0, 2)]


def _loss(removed: list[Site]) -> float:
    return sum(COSTS[unit] for unit in UNITS if unit[0] in removed)


def test_a_removal_counts_those_before_it() -> None:
    # Either of two units can go, but not both: each does the other's work.
    twins = {*UNITS[0], *UNITS[1]}

    def loss(removed: list[Site]) -> float:
        return 9.0 if twins <= set(removed) else 0.5 * len(set(removed) - twins)

    assert one_by_one(loss, UNITS, 2) == [UNITS[0], UNITS[2]]


@pytest.mark.parametrize("seed", range(5))
def test_lazily_gives_the_same_where_no_cost_shrinks_for_fewer_trials(seed: int) -> None:
    draw = random.Random(seed)
    units: list[Unit] = [(Site(n, module),) for n in range(6) for module in ("attn", "mlp")]
    alone = {unit[0]: draw.random() for unit in units}
    together = {(a[0], b[0]): 0.1 * draw.random() for a in units for b in units}
    trials = 0

    def loss(removed: list[Site]) -> float:
        nonlocal trials
        trials += 1
        pairs = sum(together[a, b] for a in removed for b in removed if a != b)
        return 2 + sum(alone[site] for site in removed) + pairs

    expected = one_by_one(loss, units, 8)
    eagerly, trials = trials, 0
    steps: list[tuple[int, int]] = []
    assert lazy_greedy(loss, units, 8, on_step=lambda *step: steps.append(step)) == expected
    assert trials < 0.7 * eagerly
    done = [n for n, _ in steps]  # each of 12 is tried once, and 8 go
    assert done == sorted(done)
    assert {total for _, total in steps} == {12 + 8}
    assert (done[0], done[-1]) == (1, 12 + 8)
    assert lazy_greedy(loss, units, 3) == expected[:3]


def test_lazily_tries_a_unit_again_before_it_removes_it() -> None:
    twins = {*UNITS[0], *UNITS[1]}

    def loss(removed: list[Site]) -> float:
        return 9.0 if twins <= set(removed) else 0.5 * len(set(removed) - twins)

    assert lazy_greedy(loss, UNITS, 2) == [UNITS[0], UNITS[2]]


def test_one_shot_goes_by_importance_alone() -> None:
    assert one_shot(COSTS, 5) == RANKED
    assert one_by_one(_loss, UNITS, 5) == RANKED  # costs that only add up


@pytest.mark.parametrize("removals", range(6))
def test_protected_units_go_last(removals: int) -> None:
    protected = {UNITS[3], UNITS[0]}
    wanted = [UNITS[n] for n in (1, 4, 2, 3, 0)][:removals]
    steps: list[tuple[int, int]] = []
    found = one_by_one(
        _loss,
        UNITS,
        removals,
        protected=protected,
        on_step=lambda *step: steps.append(step),
    )
    assert found == one_shot(COSTS, removals, protected=protected) == wanted
    trials = sum((3, 2, 1, 2, 1)[:removals])
    assert steps == [(n, trials) for n in range(1, trials + 1)]


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    broken = COSTS | {UNITS[0]: math.nan}
    assert one_shot(broken, 5) == [UNITS[n] for n in (3, 1, 4, 2, 0)]
    found = one_by_one(lambda removed: math.nan if UNITS[0][0] in removed else 1.0, UNITS, 5)
    assert found == [UNITS[n] for n in (1, 2, 3, 4, 0)]
    found = lazy_greedy(
        lambda removed: math.nan if UNITS[0][0] in removed else _loss(removed), UNITS, 5
    )
    assert found == [UNITS[n] for n in (3, 1, 4, 2, 0)]


@pytest.mark.parametrize("removals", [-1, 6])
def test_more_removals_than_units_are_refused(removals: int) -> None:
    for search in (
        lambda: one_shot(COSTS, removals),
        lambda: one_by_one(_loss, UNITS, removals),
        lambda: lazy_greedy(_loss, UNITS, removals),
    ):
        with pytest.raises(ConfigError, match=f"got {removals} removals; expected 0 to 5"):
            search()
