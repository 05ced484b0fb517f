"""Where training begins: fitted stand-ins, and routers at constant margins.

A router with a constant margin decides the same for every token, so it can copy any static
removal. Training that begins at the greedy one only has to improve on it. Margins rise from one
removed module to the next, so that every threshold is a static removal, too, and the modules
around the budget are those that noise overrules most.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from skipgpt.baselines.announced import announced
from skipgpt.baselines.search import lazily
from skipgpt.baselines.suffix_loss import SuffixLoss
from skipgpt.baselines.units import Unit, sites_of, units_of
from skipgpt.config import TrainConfig
from skipgpt.cost import Savings, savings
from skipgpt.evaluation.calibrate import cut
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.dial import set_sparsity, within_reach
from skipgpt.model.surgery import routers, stand_ins
from skipgpt.model.trace import routing_state
from skipgpt.progress import advancing
from skipgpt.routing.router import set_constant


def start_routers(
    model: Any,
    config: TrainConfig,
    text: Tensor,
    order: list[Unit] | None = None,
) -> list[Unit]:
    """Set new routers and stand-ins to what the stage starts from.

    Args:
        model: with new routers, in place.
        config: says which start, and on how much text it is chosen.
        text: [N, T] token ids of training text.
        order: what an earlier call returned, to save the search.

    Returns:
        The greedy static removal, first removed first and beyond the target, where the start is
        that.
    """
    stage = config.router_stage
    if stand_ins(model):
        with advancing("fitting stand-ins", announced=True) as advance:
            fit_stand_ins(model, cut(text, stage.fit_tokens), on_step=advance)
    if stage.start == "random":
        return []
    if stage.start == "keep":
        for router in routers(model).values():
            set_constant(router, stage.start_margin)
        return []
    if not order:
        wanted = savings_of(model, config).share_of_sites(config.target_sparsity)
        depth = max(wanted, stage.static_depth)
        order = static_solution(model, cut(text, stage.static_tokens), depth)
    share = sites_skipped(order, savings_of(model, config), config.target_sparsity)
    rank = {site: n * len(unit) for n, unit in enumerate(order) for site in unit}
    last = len(sites_of(order))
    middle = len(order[0]) / 2
    for site, router in routers(model).items():
        set_constant(router, stage.start_margin * (rank.get(site, last) + middle - share))
    return order


def savings_of(model: nn.Module, config: TrainConfig) -> Savings:
    """What each site of a model saves, in the unit of a run's budget.

    Args:
        model: with routers.
        config: of the run; the mean context is that of its rows.

    Raises:
        ConfigError: it is a budget in time, and this machine was not profiled.
    """
    context = (config.data.block_size + 1) / 2
    return savings(model, config.budget, context, config.budget_time)


def set_to_target(model: nn.Module, config: TrainConfig) -> None:
    """Set a calibrated model to the target of a run, as far as its curves say where that is.

    Where it was calibrated before there was the run's unit, it stays at its own target.
    """
    curves = routing_state(model).curves
    if curves is not None and config.budget in curves.by_budget:
        near = within_reach(model, config.target_sparsity, config.budget)
        set_sparsity(model, near, budget=config.budget)


def sites_skipped(order: list[Unit], saved: Savings, target: float) -> float:
    """How many sites of a static removal, first removed first, save a share; not a whole number.

    Args:
        order: the removal.
        saved: what each site saves.
        target: the share; where the whole removal saves less, all of its sites are meant.
    """
    if saved.unit == "modules":
        return target * len(saved.by_site)
    left = target + saved.overhead
    for count, site in enumerate(sites_of(order)):
        each = saved.by_site[site]
        if 0 < left <= each:
            return count + left / each
        left -= each
    return float(len(sites_of(order)))


def static_solution(model: nn.Module, text: Tensor, sparsity: float) -> list[Unit]:
    """The greedy static removal of this share of what the routers decide about.

    Args:
        model: with routers; its stand-ins run where modules are removed.
        text: [N, T] token ids that the loss is measured on.
        sparsity: share to remove.

    Returns:
        Modules, or layers where those decide as one; first removed first.
    """
    whole = routing_state(model).config.decides == "layer"
    units = units_of(model, "layers" if whole else "modules")
    removals = max(1, round(sparsity * len(units)))
    name, trials = "greedy static removal", len(units) + removals
    loss = announced(SuffixLoss(model, text), name, trials, at_least=True)
    with advancing(f"searching the {name}", announced=True) as advance:
        return lazily(loss, units, removals, on_step=advance)


def static_removal(model: nn.Module, text: Tensor, config: TrainConfig) -> list[Unit]:
    """The greedy static removal that saves about a run's target, in the unit of its budget.

    Args:
        model: with routers, which a static removal does without.
        text: [N, T] token ids that the loss is measured on.
        config: of the run.
    """
    target = config.target_sparsity
    saved = dataclasses.replace(savings_of(model, config), overhead=0.0)
    order = static_solution(model, text, saved.share_of_sites(target))
    if config.budget == "modules":
        return order
    return order[: max(1, round(sites_skipped(order, saved, target) / len(order[0])))]
