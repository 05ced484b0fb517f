"""Where training begins: fitted stand-ins, and routers at constant margins.

A router with a constant margin decides the same for every token, so it can copy any static
removal. Training that begins at the greedy one only has to improve on it. Margins rise from one
removed module to the next, so that every threshold is a static removal, too, and the modules
around the budget are those that noise overrules most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from skipgpt.baselines.search import lazily
from skipgpt.baselines.static import static_loss
from skipgpt.baselines.units import Unit, sites_of, units_of
from skipgpt.config import TrainConfig
from skipgpt.evaluation.calibrate import cut
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.surgery import routers, stand_ins
from skipgpt.model.trace import routing_state
from skipgpt.routing.router import set_constant

OnStep = Callable[[int, int], None]


def start_routers(
    model: Any,
    config: TrainConfig,
    text: Tensor,
    on_step: OnStep | None = None,
    order: list[Unit] | None = None,
) -> list[Unit]:
    """Set new routers and stand-ins to what the stage starts from.

    Args:
        model: with new routers, in place.
        config: says which start, and on how much text it is chosen.
        text: [N, T] token ids of training text.
        on_step: called with steps of the search done and in all.
        order: what an earlier call returned, to save the search.

    Returns:
        The greedy static removal, first removed first and beyond the target, where the start is
        that.
    """
    stage = config.router_stage
    if stand_ins(model):
        fit_stand_ins(model, cut(text, stage.fit_tokens))
    if stage.start == "random":
        return []
    if stage.start == "keep":
        for router in routers(model).values():
            set_constant(router, stage.start_margin)
        return []
    if not order:
        depth = max(config.target_sparsity, stage.static_depth)
        order = static_solution(model, cut(text, stage.static_tokens), depth, on_step)
    share = config.target_sparsity * len(routers(model))
    rank = {site: n * len(unit) for n, unit in enumerate(order) for site in unit}
    last = len(sites_of(order))
    middle = len(order[0]) / 2
    for site, router in routers(model).items():
        set_constant(router, stage.start_margin * (rank.get(site, last) + middle - share))
    return order


def static_solution(
    model: nn.Module, text: Tensor, sparsity: float, on_step: OnStep | None = None
) -> list[Unit]:
    """The greedy static removal of this share of what the routers decide about.

    Args:
        model: with routers; its stand-ins run where modules are removed.
        text: [N, T] token ids that the loss is measured on.
        sparsity: share to remove.
        on_step: called with trials done and trials in all.

    Returns:
        Modules, or layers where those decide as one; first removed first.
    """
    whole = routing_state(model).config.decides == "layer"
    units = units_of(model, "layers" if whole else "modules")
    removals = max(1, round(sparsity * len(units)))
    return lazily(lambda sites: static_loss(model, text, sites), units, removals, on_step=on_step)
