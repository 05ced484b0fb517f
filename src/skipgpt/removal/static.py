"""Constant routers that give a static removal."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from skipgpt.model.state import routing_state
from skipgpt.model.surgery import routers
from skipgpt.removal.units import Unit
from skipgpt.routing.decision import Threshold
from skipgpt.routing.router import set_constant


def constant_routes(model: nn.Module, units: Sequence[Unit]) -> None:
    """Turn a static removal into constant routers, in place, which heal, save and load as usual.

    From now on the model decides by threshold 0 and skips exactly these units for every token;
    lower thresholds skip the first ones only. The first has margin -1, later ones more, always
    below 0; all that are not removed share +1. The sites of one unit share a margin, so that no
    threshold splits it. An earlier calibration is dropped.

    Args:
        model: with routers, which are overwritten.
        units: as a method returns them, first removed first.

    Example:
        constant_routes(model, sleb(model, blocks, 4))
    """
    rank = {site: -1 + n / len(units) for n, unit in enumerate(units) for site in unit}
    for site, router in routers(model).items():
        set_constant(router, rank.get(site, 1.0))
    state = routing_state(model)
    state.rule, state.curve = Threshold(0.0), None
