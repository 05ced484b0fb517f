"""The greedy static removal."""

from __future__ import annotations

import pytest

from cases import routed
from removals import static_loss
from runs import rows
from skipgpt.cost import savings
from skipgpt.removal.greedy import greedy_removal
from skipgpt.removal.units import units_of


@pytest.mark.parametrize("stand_in", [0, 3])
@pytest.mark.parametrize(("decides", "units"), [("module", "modules"), ("layer", "layers")])
def test_it_begins_with_what_costs_least_with_stand_ins_in_place(
    stand_in: int, decides: str, units: str
) -> None:
    model, text = routed(stand_in=stand_in, decides=decides), rows(8)
    saved = savings(model, "modules", 8.5)
    order = greedy_removal(model, text, saved, 0.67)
    assert len(order) == (4 if decides == "module" else 2)
    assert order[0] == min(
        units_of(model, units), key=lambda unit: static_loss(model, text, list(unit))
    )
    assert greedy_removal(model, text, saved, 0.17) == order[:1]
