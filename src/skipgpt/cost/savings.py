"""What skipping a module saves, in the unit of a budget.

modules   every module counts the same (paper)
flops     FLOPs per token that skipping really saves: keys and values are still computed under
          `kv="dense"`, and the stand-in runs instead; the dense total includes the head
time      seconds of this machine, as `skipgpt profile` measured it; see `seconds.py`

Under `kv="dense"` keys and values are computed for every token; queries, attention core and output
projection for tokens that keep attention; the MLP for tokens that keep the MLP. Head, K, V and the
routers, which the dense model lacks, always count as run.

    parameters per token   routers + head + sum over layers (kv + keep_attn * qo + keep_mlp * mlp)
    FLOPs per token        2 * parameters + sum over layers 4 * keep_attn * heads * head size * S

with S the mean number of tokens attended to, at most a sliding window. Under `kv="skip"` both kv
and S are multiplied by keep_attn too. A stand-in counts for the tokens that skip its module. A
multiply and an add are two FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from skipgpt.config import Budget, TimedForward, check_budget
from skipgpt.cost.counts import deciding_parameters, head_parameters, layer_costs, parameters_of
from skipgpt.cost.seconds import profile_for, time_savings
from skipgpt.cost.shares import Savings
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import routed_layers, routers, stand_ins
from skipgpt.routing.decision import MODULES, Site

SENSES = ("module", "attn", "mlp", "params", "flops", "time")
"""The senses in which sparsity is reported; `time` only where the machine was profiled."""


def savings(
    model: nn.Module,
    unit: Budget,
    context: float,
    timed: TimedForward | None = None,
    *,
    removed: bool = False,
) -> Savings:
    """What each site of a model saves.

    Args:
        model: with routers.
        unit: `modules`, `flops` or `time`.
        context: mean number of tokens that a token attends to; `time` has its own.
        timed: the forward whose seconds `time` counts; that of the model's calibration where None,
            or else the default one.
        removed: count a static removal: keys and values are removed with attention, and no router
            runs; stand-ins still do.

    Raises:
        ConfigError: the unit is unknown, or it is `time` and this machine was not profiled.
    """
    sites = list(routers(model))
    if check_budget(unit) == "modules":
        return Savings(unit, dict.fromkeys(sites, 1 / len(sites)))
    if unit == "time":
        return time_savings(model, timed or timed_of(model), removed=removed)
    dense = flops_per_token(model, context)
    saved: dict[Site, float] = {}
    pairs: dict[Site, float] = {}
    for layer in routed_layers(model):
        cost, attn = layer_costs(layer), Site(layer.index, "attn")
        core = cost.core_flops(context)
        saved[attn] = 2 * cost.qo + core
        saved[Site(layer.index, "mlp")] = 2 * cost.mlp
        if removed:
            saved[attn] += 2 * cost.kv
        elif layer.routing.config.kv == "skip":
            saved[attn] += 2 * cost.kv
            pairs[attn] = core / dense
    for site, stand_in in stand_ins(model).items():
        saved[site] -= 2 * parameters_of(stand_in)
    by_site = {site: saved[site] / dense for site in sites}
    overhead = 0.0 if removed else 2 * deciding_parameters(model) / dense
    return Savings(unit, by_site, overhead, pairs)


def flops_per_token(model: nn.Module, context: float) -> float:
    """FLOPs per token with everything kept, routers left out; `context` as in `savings`."""
    costs = [layer_costs(layer) for layer in routed_layers(model)]
    weights = head_parameters(model) + sum(each.kv + each.qo + each.mlp for each in costs)
    return 2 * weights + sum(each.core_flops(context) for each in costs)


def timed_of(model: nn.Module) -> TimedForward:
    """The forward whose seconds a model was calibrated to; the default one if it was not."""
    curves = routing_state(model).curves
    return (curves.timed if curves else None) or TimedForward()


def no_sparsities(model: nn.Module) -> dict[str, float]:
    """Sparsity in all its senses, of a dense forward."""
    return {each: 0.0 for each in SENSES if each != "time" or profile_for(model)}


def sparsities(
    model: nn.Module,
    keep: Mapping[Site, float],
    context: float,
    timed: TimedForward | None = None,
    *,
    removed: bool = False,
) -> dict[str, float]:
    """Sparsity in all its senses, at the share of tokens that each site keeps.

    `context`, `timed` and `removed` are as in `savings`.

    Returns:
        `module`, `attn` and `mlp` count decisions; `params` and `flops` are one minus what a token
        uses, routers and stand-ins included, over what it uses in the dense model, so that a
        routed model that skips nothing is a little below 0. `time` is likewise of the seconds of
        one forward, where this machine was profiled.
    """

    def skipped(*kinds: str) -> float:
        kept = [share for site, share in keep.items() if site.module in kinds]
        return 1 - sum(kept) / len(kept)

    def saved(unit: Budget, context: float) -> float:
        return savings(model, unit, context, timed, removed=removed).share(keep)

    shares: dict[str, float] = {
        "module": skipped(*MODULES),
        **{kind: skipped(kind) for kind in MODULES},
        # The attention core, which has no parameters, is all that grows with the context.
        "params": saved("flops", 0),
        "flops": saved("flops", context),
    }
    if profile_for(model):
        shares["time"] = saved("time", context)
    return shares


def overhead(model: nn.Module) -> dict[str, float]:
    """What routing adds, as shares of the parameters that a token uses in the dense model.

    Returns:
        `routers`, which every token runs, and `stand_ins`, which it would if it skipped everything.
    """
    dense = flops_per_token(model, 0) / 2
    added = sum(map(parameters_of, stand_ins(model).values()))
    return {"routers": deciding_parameters(model) / dense, "stand_ins": added / dense}


def saved_by_router(model: nn.Module, savings: Savings) -> dict[Site, float]:
    """Return what each router's decision saves: of both modules where one decides for a layer."""
    saved = dict(savings.by_site)
    if routing_state(model).config.decides != "layer":
        return saved
    return {site: sum(saved[Site(site.layer, module)] for module in MODULES) for site in saved}
