"""What a static method removes: a unit is a whole layer's two sites, or one site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import nn

from skipgpt.errors import ConfigError
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import MODULES, Site

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
