"""Finds what a static method removes at a budget, once, and keeps it on disk.

A budget is a share of the modules, or of the FLOPs or seconds of a dense forward. What a site saves
is counted by `skipgpt.cost.savings`; a static removal also drops keys and values and runs no
routers.

`sleb` and `sleb+lora` share a search, and so do the two removals that bracket a budget. Its time
counts for every row that uses it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import nn

from skipgpt.baselines.registry import STATIC
from skipgpt.baselines.top_k import top_k_rule
from skipgpt.comparison.method import DENSE, TRAINED, Method
from skipgpt.comparison.setup import ComparisonSetup
from skipgpt.config import RouterConfig, TrainConfig
from skipgpt.cost import Savings
from skipgpt.errors import ConfigError
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.fitting.stand_ins import fit_stand_ins, fit_to_removal
from skipgpt.model.surgery import add_routers, remove_routers, stand_ins
from skipgpt.removal.units import Unit, constant_routes
from skipgpt.routing.decision import Site
from skipgpt.system.atomic import staged, to_json
from skipgpt.system.progress import advancing

logger = logging.getLogger("skipgpt")

ROUNDING = 1e-9
"""Budgets that differ by less are equal: sums of shares are rounded."""
SEARCH_VERSION = 2
"""Increased when the code changes what a search finds."""


@dataclass(frozen=True)
class Removal:
    """The two removal counts that bracket a budget.

    Attributes:
        order: what is removed, first removed first; empty for methods that change weights, which
            search for every count.
        low: the smaller count.
        high: the larger one; equal if one count meets the budget.
        share: share of the larger one in their mixture.
        seconds: seconds that fitting stand-ins and searching took.
    """

    order: tuple[Unit, ...]
    low: int
    high: int
    share: float
    seconds: float = 0.0


def find_removal(setup: ComparisonSetup, method: Method, config: TrainConfig, out: Path) -> Removal:
    """Return what a static method removes at the budget of a config; `dense` removes nothing.

    A search makes as many removals as the budget may need, whichever units go first. For methods
    that change weights only the counts are returned; there every layer counts as the mean of all.
    Searches are kept below the folder of the comparison.
    """
    if method.kind == DENSE:
        return Removal((), 0, 0, 0.0)
    kind, target = STATIC[method.kind], config.target_sparsity
    model, fitting = _fresh(setup, method, config)
    saved = setup.savings(model, removed=True)
    units = kind.candidates(model)
    if kind.changes_weights:
        exact = target * len(units) / sum(unit_saves(saved, unit) for unit in units)
        low, high = math.floor(exact + ROUNDING), math.ceil(exact - ROUNDING)
        return Removal((), low, high, exact - low)
    removals = most_removals(units, saved, target)
    found, seconds = _searched(setup, method, config, model, removals, out)
    order = tuple(paying(found, saved))
    return Removal(order, *between(order, saved, target), fitting + seconds)


def apply_removal(
    setup: ComparisonSetup, method: Method, config: TrainConfig, removal: Removal, count: int
) -> tuple[Any, list[Unit], float]:
    """Return a model with the method's weights, what it skips, and the seconds that took."""
    model, _ = _fresh(setup, method, config)
    units, seconds = [*removal.order[:count]], 0.0
    if method.kind in STATIC and STATIC[method.kind].changes_weights:
        units, seconds = _search(setup, method, model, count)
    constant_routes(model, units)
    if method.stand_in and units:
        began = time.perf_counter()
        with advancing("fitting stand-ins to the removal", announced=True) as advance:
            fit_to_removal(model, setup.blocks.train, config.fit_stage, advance)
        seconds += time.perf_counter() - began
    return model, units, seconds


def _fresh(setup: ComparisonSetup, method: Method, config: TrainConfig) -> tuple[Any, float]:
    """Return the base model with routers and fitted stand-ins, if any, and the seconds of fitting.

    Stand-ins of the dense model are fitted once per comparison; every row that has them counts the
    time of that fit.
    """
    model = setup.routed(stand_ins_of(method, config))
    if not method.stand_in:
        return model, 0.0
    key = config.router.stand_in, config.fit_stage.stand_in_tokens
    if key not in setup.fits:
        began = time.perf_counter()
        with advancing("fitting stand-ins", announced=True) as advance:
            text = subsample_rows(setup.blocks.train, config.fit_stage.stand_in_tokens)
            fit_stand_ins(model, text, on_step=advance)
        seconds = time.perf_counter() - began
        fitted = {site: each.state_dict() for site, each in stand_ins(model).items()}
        setup.fits[key] = fitted, seconds
    fitted, seconds = setup.fits[key]
    for site, each in stand_ins(model).items():
        each.load_state_dict(fitted[site])
    return model, seconds


def _searched(
    setup: ComparisonSetup,
    method: Method,
    config: TrainConfig,
    model: Any,
    removals: int,
    out: Path,
) -> tuple[tuple[Unit, ...], float]:
    """Return the order of removals and the seconds of its search, from disk if it is there."""
    made_of = {
        "version": SEARCH_VERSION,
        "method": method.kind,
        "removals": removals,
        "tokens": setup.search_text().numel(),
        "stand_ins": method.stand_in and [config.router.stand_in, config.fit_stage.stand_in_tokens],
    }
    key, made_of = setup.keyed(**made_of)
    path = out / "searches" / f"{method.kind}-{key[:16]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        order = tuple(tuple(Site(*site) for site in unit) for unit in kept["order"])
        return order, float(kept["seconds"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and made anew: %s", path, error)
    found, seconds = _search(setup, method, model, removals)
    order = tuple(found)
    with staged(path.parent) as stage:
        text = to_json({"order": order, "seconds": seconds, **made_of})
        (stage / path.name).write_text(text, encoding="utf-8")
    return order, seconds


def _search(
    setup: ComparisonSetup, method: Method, model: Any, removals: int
) -> tuple[list[Unit], float]:
    """Let the method choose; return its units and the seconds it took."""
    if not removals:
        return [], 0.0
    began = time.perf_counter()
    with advancing(f"searching what {method.kind} removes", announced=True) as advance:
        found = STATIC[method.kind].order(model, setup.search_text(), removals, on_step=advance)
    return found, time.perf_counter() - began


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
        if setup.budget == "time" and method.kind in TRAINED and TRAINED[method.kind].top_k:
            raise ConfigError(
                f"comparing {method}",
                got="a budget in time",
                expected="one in modules or FLOPs, which fall in proportion to the tokens that "
                "skip: the share of the tokens that run is set before anything is measured",
                todo="leave out the method, or count another budget, as in --budget flops",
            )
        most = _reach(setup, remove_routers(model), method)
        if (largest := max(sparsities)) > most + ROUNDING:
            raise ConfigError(
                f"comparing {method}",
                got=f"a budget of {largest:g} of the {setup.unit}",
                expected=f"at most {most:.3g}, all that it can skip in this model",
                todo="leave out the method or the budget",
            )


def _reach(setup: ComparisonSetup, model: nn.Module, method: Method) -> float:
    """Return the largest share that a method can skip; adds routers to a model that has none."""
    config = setup.config(method, 0.0, 0)
    if method.kind in STATIC:
        kind = STATIC[method.kind]
        add_routers(model, stand_ins_of(method, config))
        saved = setup.savings(model, removed=True)
        each = [unit_saves(saved, unit) for unit in paying(kind.candidates(model), saved)]
        return sum(each) - (max(each) if kind.changes_weights else 0.0)  # one layer stays, merged
    add_routers(model, config.router)
    saved = setup.savings(model)
    if method.kind in TRAINED and TRAINED[method.kind].top_k:
        rule = top_k_rule(model, 0.0)
        skips = {site: share for site, share in saved.by_site.items() if rule.skips(site)}
        saved = dataclasses.replace(saved, by_site=skips, pairs={})
    return saved.largest


def unit_saves(saved: Savings, unit: Unit) -> float:
    """Return what removing a unit saves, as a share of the dense forward."""
    return sum(saved.by_site[site] for site in unit)


def paying(units: Iterable[Unit], saved: Savings) -> list[Unit]:
    """Return the units whose removal saves anything: others have stand-ins that cost more."""
    return [unit for unit in units if unit_saves(saved, unit) > 0]


def most_removals(units: Iterable[Unit], saved: Savings, target: float) -> int:
    """Return the most removals that a budget can take: if those that save least go first.

    Those that save nothing are among them, though a budget counts none of them.
    """
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
