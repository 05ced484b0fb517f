"""What a static method removes: a unit is a whole layer's two sites, or one site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import nn

from skipgpt.errors import ConfigError
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import routed_layers, routers
from skipgpt.routing.decision import MODULES, Site, Threshold
from skipgpt.routing.router import set_constant

Unit = tuple[Site, ...]
Kind = Literal["layers", "modules"]


def units_of(model: nn.Module, kind: Kind) -> list[Unit]:
    """Return all units that a method of this kind may remove, in forward order."""
    layers = [tuple(Site(layer.index, each) for each in MODULES) for layer in routed_layers(model)]
    return layers if kind == "layers" else [(site,) for layer in layers for site in layer]


def sites_of(units: Iterable[Unit]) -> list[Site]:
    """Return the sites of some units, one unit after another."""
    return [site for unit in units for site in unit]


def check_removals(removals: int, units: Sequence[Unit]) -> None:
    """Raise ConfigError at removals below 0, or more than there are units."""
    if not 0 <= removals <= len(units):
        raise ConfigError(
            "choosing what to remove",
            got=f"{removals} removals",
            expected=f"0 to {len(units)}, as many as the model has to remove",
        )


def constant_routes(model: nn.Module, units: Sequence[Unit]) -> None:
    """Make the routers of removed sites skip every token, in place.

    The model heals, saves and loads as usual. From now on it decides by threshold 0 and skips
    exactly these units for every token; lower thresholds skip the first ones only. The first has
    margin -1, later ones more, always below 0; all that are not removed share +1. The sites of one
    unit share a margin, so that no threshold splits it. An earlier calibration is dropped.

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
    state.rule, state.curves = Threshold(0.0), None
