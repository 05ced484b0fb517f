"""Greedy static removal: each round removes the unit whose removal costs the least loss."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from skipgpt.cost import Savings
from skipgpt.model.state import routing_state
from skipgpt.removal.announced import announced
from skipgpt.removal.search import lazy_greedy
from skipgpt.removal.suffix_loss import SuffixLoss
from skipgpt.removal.units import Unit, sites_of, units_of
from skipgpt.system.progress import advancing


def greedy_removal(model: nn.Module, text: Tensor, saved: Savings, target: float) -> list[Unit]:
    """Return the greedy static removal that saves about the target, in the unit of the savings.

    The loss is measured on token ids [N, T]. Routers are not used; stand-ins run where modules are
    removed.

    Returns:
        Modules, or layers if routers decide by layer; first removed first.
    """
    saved = dataclasses.replace(saved, overhead=0.0)
    whole = routing_state(model).config.decides == "layer"
    units = units_of(model, "layers" if whole else "modules")
    removals = max(1, round(saved.share_of_sites(target) * len(units)))
    name, trials = "greedy static removal", len(units) + removals
    loss = announced(SuffixLoss(model, text), name, trials, at_least=True)
    with advancing(f"searching the {name}", announced=True) as advance:
        order = lazy_greedy(loss, units, removals, on_step=advance)
    if saved.unit == "modules":
        return order
    return order[: max(1, round(sites_skipped(order, saved, target) / len(order[0])))]


def sites_skipped(order: list[Unit], saved: Savings, target: float) -> float:
    """Return how many sites of a removal, first removed first, save a share; may be fractional.

    If the whole removal saves less, all of its sites count.
    """
    left = target + saved.overhead
    for count, site in enumerate(sites_of(order)):
        each = saved.by_site[site]
        if 0 < left <= each:
            return count + left / each
        left -= each
    return float(len(sites_of(order)))
