"""The two searches, on made-up losses."""

from __future__ import annotations

import math

import pytest

from skipgpt.errors import ConfigError
from skipgpt.removal.search import one_by_one, one_shot
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


@pytest.mark.parametrize("wanted", range(7))
def test_a_search_ends_where_enough_is_removed(wanted: int) -> None:
    steps: list[tuple[int, int]] = []
    found = one_by_one(
        _loss,
        UNITS,
        5,
        enough=lambda removed: len(removed) >= wanted,
        on_step=lambda *step: steps.append(step),
    )
    assert found == RANKED[:wanted]
    # Nobody knows beforehand when it is enough: no total is promised.
    trials = sum((5, 4, 3, 2, 1)[:wanted])
    assert steps == [(n, 0) for n in range(1, trials + 1)]


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


@pytest.mark.parametrize("removals", [-1, 6])
def test_more_removals_than_units_are_refused(removals: int) -> None:
    for search in (
        lambda: one_shot(COSTS, removals),
        lambda: one_by_one(_loss, UNITS, removals),
    ):
        with pytest.raises(ConfigError, match=f"got {removals} removals; expected 0 to 5"):
            search()
