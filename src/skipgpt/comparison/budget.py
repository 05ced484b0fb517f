"""Budgets of a comparison: how much each method can skip, and which removals bracket a budget.

A budget is a share of the modules or of the FLOPs of a dense forward. What a site saves is counted
by `skipgpt.cost.savings`; a static removal also drops keys and values and runs no routers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from torch import nn

from skipgpt.baselines.registry import STATIC
from skipgpt.baselines.top_k import top_k_rule
from skipgpt.comparison.method import DENSE, TRAINED, Method
from skipgpt.comparison.setup import ComparisonSetup
from skipgpt.config import RouterConfig, TrainConfig
from skipgpt.cost import Savings, savings
from skipgpt.errors import ConfigError
from skipgpt.model.surgery import add_routers, remove_routers
from skipgpt.removal.units import Unit

ROUNDING = 1e-9
"""Budgets that differ by less are equal: sums of shares are rounded."""


def stand_ins_of(method: Method, config: TrainConfig) -> RouterConfig:
    """Return the router config of a static method: its stand-ins, if it has them."""
    return RouterConfig(stand_in=config.router.stand_in if method.stand_in else 0)


def check_reach(
    setup: ComparisonSetup, methods: Sequence[Method], sparsities: Sequence[float]
) -> None:
    """Raise ConfigError if a method cannot skip as much as a budget asks for; says how much."""
    model = setup.routed()
    for method in methods:
        if method.kind == DENSE:
            continue
        most = _reach(setup, remove_routers(model), method)
        if (largest := max(sparsities)) > most + ROUNDING:
            raise ConfigError(
                f"comparing {method}",
                got=f"a budget of {largest:g} of all {setup.unit}",
                expected=f"at most {most:.3g}, all that it can skip in this model",
                todo="leave out the method or the budget",
            )


def _reach(setup: ComparisonSetup, model: nn.Module, method: Method) -> float:
    """Return the largest share that a method can skip; adds routers to a model that has none."""
    config = setup.config(method, 0.0, 0)
    if method.kind in STATIC:
        kind = STATIC[method.kind]
        add_routers(model, stand_ins_of(method, config))
        saved = savings(model, setup.budget, setup.context, removed=True)
        each = [unit_saves(saved, unit) for unit in kind.candidates(model)]
        return sum(each) - (max(each) if kind.changes_weights else 0.0)  # one layer stays, merged
    add_routers(model, config.router)
    saved = savings(model, setup.budget, setup.context)
    skips = saved.by_site
    if method.kind in TRAINED and TRAINED[method.kind].top_k:
        rule = top_k_rule(model, 0.0)
        skips = {site: share for site, share in skips.items() if rule.skips(site)}
    return sum(skips.values()) - saved.overhead


def unit_saves(saved: Savings, unit: Unit) -> float:
    """Return what removing a unit saves, as a share of the dense forward."""
    return sum(saved.by_site[site] for site in unit)


def most_removals(units: Iterable[Unit], saved: Savings, target: float) -> int:
    """Return the most removals that a budget can take: if those that save least go first."""
    return _reached(sorted(unit_saves(saved, unit) for unit in units), target)


def between(order: Sequence[Unit], saved: Savings, target: float) -> tuple[int, int, float]:
    """Return the two removal counts that bracket a budget, and the larger one's share in the mix.

    `order` has to reach the target. Where one count meets it, returns that count twice and a share
    of 0.

    Example:
        >>> one, two = (Site(0, "attn"),), (Site(0, "mlp"),)
        >>> between([one, two], Savings("flops", {one[0]: 0.2, two[0]: 0.4}), 0.5)
        (1, 2, 0.75)
    """
    each = [unit_saves(saved, unit) for unit in order]
    high = _reached(each, target)
    reached = sum(each[:high])
    if high == 0 or reached <= target + ROUNDING:
        return high, high, 0.0
    below = reached - each[high - 1]
    return high - 1, high, (target - below) / (reached - below)


def _reached(each: Sequence[float], target: float) -> int:
    """Return how many of these, from the first, sum to the target; all if they never do."""
    sums = accumulate(each, initial=0.0)
    return next((n for n, share in enumerate(sums) if share >= target - ROUNDING), len(each))
