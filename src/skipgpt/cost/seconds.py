"""A budget in time: what skipping saves of the seconds of one forward on a profiled machine.

A forward reads R tokens: batch size times context in prefill, one per row in decode. Weights of
W numbers that r tokens are multiplied with take

    product(W, r) = max(2 W r / FLOPs per second, bytes of W / bytes per second)

If each token keeps a module with probability k, some token runs it in any(k) = 1 - (1 - k)^R of
the forwards, and then R k / any(k) tokens do on average. It takes

    any(k) * (the cheaper of running all R tokens, and of running the kept ones and packing them)
    + any(1 - k) * product(stand-in, tokens that skip)

where running r tokens is product(W, r) and, for attention, the core: 4 FLOPs per width and
attended token in prefill, reading the cached keys and values in decode. Packing takes the seconds
that `skipgpt profile` measured, and moves 2 (R + r) rows of the residual stream; a token alone is
never packed. Keys and values run for every token (for kept ones under `kv="skip"`), the head for
one token per row, routers for every token. So decode at a batch size above 1 saves next to nothing
unless all rows skip the same module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from skipgpt.config import TimedForward
from skipgpt.cost.counts import (
    deciding_parameters,
    head_parameters,
    layer_bytes,
    layer_costs,
    parameters_of,
)
from skipgpt.cost.shares import Savings
from skipgpt.errors import ConfigError
from skipgpt.model.surgery import hidden_size, routed_layers, routers, stand_ins
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.routing.decision import Site
from skipgpt.system.device_profile import Machine, stored_profile
from skipgpt.system.hardware import hardware

ROUTER_BYTES = 4
"""Bytes of a number in routers and stand-ins, which are float32."""


@dataclass(frozen=True)
class ModuleSeconds:
    """The seconds of one module, by how many of its tokens run.

    Attributes:
        machine: where it runs.
        tokens: how many enter it (R).
        weights: numbers in its weights.
        number_bytes: bytes of each.
        core: seconds of the attention core where all tokens run.
        packing: seconds that packing takes, however few tokens are packed.
        row: seconds of moving one row of the residual stream.
        stand_in: numbers in the weights of its stand-in.
    """

    machine: Machine
    tokens: int
    weights: int
    number_bytes: float
    core: float = 0.0
    packing: float = 0.0
    row: float = 0.0
    stand_in: int = 0

    def at(self, keep: float) -> float:
        """Expected seconds per forward if each token keeps the module with this probability.

        Example:
            >>> on = Machine(flops=1e11, bandwidth=1e10, mlp_packing=0.0, attn_packing=0.0)
            >>> ModuleSeconds(on, tokens=100, weights=1000, number_bytes=4).at(0.5)
            1e-06
        """
        return self._kept(keep) + self._skipped(1 - keep)

    def _kept(self, keep: float) -> float:
        some = _any(keep, self.tokens)
        if some == 0:
            return 0.0
        everything = self._running(self.tokens)
        if self.tokens == 1 or keep >= 1:
            return some * everything
        rows = self.tokens * keep / some
        moving = 2 * (self.tokens + rows) * self.row
        return some * min(everything, self._running(rows) + self.packing + moving)

    def _running(self, rows: float) -> float:
        products = self.machine.product_seconds(self.weights, rows, self.number_bytes)
        return products + self.core * rows / self.tokens

    def _skipped(self, skip: float) -> float:
        some = _any(skip, self.tokens)
        if not self.stand_in or some == 0:
            return 0.0
        rows = self.tokens * skip / some
        return some * self.machine.product_seconds(self.stand_in, rows, ROUTER_BYTES)


@dataclass(frozen=True)
class TimeSavings(Savings):
    """Savings in seconds, which are not in proportion to what is skipped.

    `by_site` is what a site saves where every token skips it; `share` counts what is saved at
    keep ratios between.

    Attributes:
        modules: the seconds of each site.
        dense: seconds of the dense forward.
    """

    modules: Mapping[Site, ModuleSeconds] = field(default_factory=dict)
    dense: float = 1.0

    def share(self, keep: Mapping[Site, float]) -> float:
        """The share of the dense seconds that is saved at these keep ratios."""
        saved = sum(each.at(1) - each.at(keep[site]) for site, each in self.modules.items())
        return saved / self.dense - self.overhead


def time_savings(
    model: nn.Module,
    timed: TimedForward,
    machine: Machine | None = None,
    *,
    removed: bool = False,
) -> TimeSavings:
    """What each site of a model saves of the seconds of a forward, on the model's device.

    Where `machine` is None, it is what `skipgpt profile` stored for that device and the model's
    dtype. `removed` is as in `savings`.

    Raises:
        ConfigError: these were not profiled.
    """
    dtype = cast("torch.dtype", model.dtype)
    machine = machine or measured_machine(model)
    prefill = timed.phase == "prefill"
    rows = timed.batch_size * (timed.context if prefill else 1)
    modules: dict[Site, ModuleSeconds] = {}
    row = hidden_size(model) * dtype.itemsize / machine.bandwidth
    replaced = {site: parameters_of(each) for site, each in stand_ins(model).items()}
    seconds = machine.product_seconds(head_parameters(model), timed.batch_size, dtype.itemsize)
    for layer in routed_layers(model):
        costs, (kv_bytes, qo_bytes, mlp_bytes) = layer_costs(layer), layer_bytes(layer)
        if prefill:
            pairs = rows * costs.attended(0, timed.context)
            core = 4 * costs.core_width * pairs / machine.flops
        else:
            cached = timed.batch_size * costs.held(timed.context) * costs.cached
            core = cached * dtype.itemsize / machine.bandwidth
        # Of experts, a token reads those that it runs: bytes per number are those of all of them.
        each_mlp = mlp_bytes / parameters_of(getattr(layer, layer.family.mlp))
        qo = costs.qo
        if removed or layer.routing.config.kv == "skip":
            qo, qo_bytes = qo + costs.kv, qo_bytes + kv_bytes
        else:
            seconds += machine.product_seconds(costs.kv, rows, kv_bytes / max(1, costs.kv))
        for site, weights, number_bytes, core_seconds, packing in (
            (Site(layer.index, "attn"), qo, qo_bytes / qo, core, machine.attn_packing),
            (Site(layer.index, "mlp"), costs.mlp, each_mlp, 0.0, machine.mlp_packing),
        ):
            stand_in = replaced.get(site, 0)
            modules[site] = ModuleSeconds(
                machine, rows, weights, number_bytes, core_seconds, packing, row, stand_in
            )
    dense = seconds + sum(each.at(1) for each in modules.values())
    deciding = 0 if removed else deciding_parameters(model)
    routing = machine.product_seconds(deciding, rows, ROUTER_BYTES)
    by_site = {site: (each.at(1) - each.at(0)) / dense for site, each in modules.items()}
    return TimeSavings("time", by_site, routing / dense, modules=modules, dense=dense)


def _any(share: float, tokens: int) -> float:
    """The probability that at least one token does what each does with probability `share`."""
    return float(1 - (1 - share) ** tokens)


def with_time(model: nn.Module, curves: Curves) -> Curves:
    """Add a curve of time if this machine was profiled and the curves lack one."""
    if "time" in curves.by_budget or not curves.keep_at or profile_for(model) is None:
        return curves
    timed = curves.timed or TimedForward()
    saved = time_savings(model, timed)
    points = (
        (saved.share(dict(zip(routers(model), keep, strict=True))), at)
        for at, *keep in curves.keep_at
    )
    by_budget = {**curves.by_budget, "time": CalibrationCurve.rising(points)}
    return dataclasses.replace(curves, by_budget=by_budget, timed=timed, hardware=timed_on(model))


def timed_on(model: nn.Module) -> dict[str, str]:
    """The hardware that a model's seconds are counted on."""
    found = hardware(next(model.parameters()).device)
    return {name: str(value) for name, value in found.items()}


def profile_for(model: nn.Module) -> Machine | None:
    """What `skipgpt profile` stored for a model's device and dtype; None if nothing."""
    return stored_profile(next(model.parameters()).device, cast("torch.dtype", model.dtype))


def measured_machine(model: nn.Module) -> Machine:
    """What `skipgpt profile` stored for a model's device and dtype.

    Raises:
        ConfigError: these were not profiled.
    """
    if machine := profile_for(model):
        return machine
    device, kind = next(model.parameters()).device, str(model.dtype).removeprefix("torch.")
    raise ConfigError(
        "counting a budget in time",
        got=f"no profile of {device.type} in {kind} on this machine",
        expected="measured costs of this machine",
        todo=f"run `skipgpt profile --device {device.type} --dtype {kind}` once, which takes a "
        "few seconds",
    )
