"""Passes over a text whose gates have gradients, and what routers read in them.

A gate multiplies a module's output and, as `1 - gate`, its stand-in's. So the gradient of a loss
with respect to the gate is `g . delta`: the loss's gradient at the stream times what the module
adds beyond its stand-in, whatever the family does after a module, and also where the gate is 0.

Shapes: B batch, T tokens, D hidden, V vocabulary, N tokens of the whole text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.config import RouterConfig
from skipgpt.errors import ConfigError, TrainingError
from skipgpt.model.state import execution, routing_state, use_rule
from skipgpt.model.surgery import routed_layers, routers
from skipgpt.routing.decision import MODULES, ModuleDecision, Site
from skipgpt.routing.router import Router, Scale
from skipgpt.system.mode import in_mode
from skipgpt.system.progress import OnStep

Gates = Sequence[Tensor]
"""The gates [B, T] of one forward, 0 or 1, with gradients; in forward order."""


@dataclass(frozen=True)
class SiteValues:
    """What was found at one site.

    Attributes:
        read: [N, D] what its router reads: float16 and normalised if the router normalises, else
            float32. Sites that read the same share it. None where inputs were not kept.
        margin: [N] float32, its router's margins.
        value: [N] float32, what the pass measured.
    """

    read: Tensor | None
    margin: Tensor
    value: Tensor


WITHOUT_FIT = "train such routers without a fit: --stages router,lora (compare: router@paper)"


def refuse_sequences(config: RouterConfig, doing: str) -> None:
    """Raise a ConfigError if routers decide for whole sequences, whose costs no token has."""
    if config.decides == "sequence":
        raise ConfigError(
            doing,
            got='router.decides = "sequence"',
            expected="a decision for each token, by module or by layer",
            todo=WITHOUT_FIT,
        )


def gated_passes(
    model: nn.Module,
    text: Tensor,
    measure: Callable[[Tensor, Tensor, Gates], list[Tensor]],
    *,
    threshold: float = -math.inf,
    layers: Collection[int] | None = None,
    everywhere: bool = False,
    batch_size: int = 4,
    on_step: OnStep | None = None,
) -> dict[Site, SiteValues]:
    """Run a text with every module and gates that have gradients, and measure each decision.

    `measure` gets the ids [B, T], logits [B, T, V] and gates, and returns a value [B * T] per gate.
    Routes are those of the threshold; minus infinity keeps everything. Sites and router inputs are
    those of `layers`, all if None; with `everywhere` the sites of all layers are measured.

    Returns values by site in forward order; where one router decides for a layer, its attention
    site has the value of skipping both modules. Raises a ConfigError for routers of whole
    sequences, and a TrainingError if a value is NaN or infinite.
    """
    config = routing_state(model).config
    refuse_sequences(config, "fitting routers")
    device = next(model.parameters()).device
    wanted = [
        layer.index for layer in routed_layers(model) if layers is None or layer.index in layers
    ]
    kind = torch.float16 if config.normalize else torch.float32
    batches = text.split(batch_size)  # type: ignore[no-untyped-call]
    values: dict[Site, list[Tensor]] = {}
    margins: dict[Site, list[Tensor]] = {}
    with _at_rest(model), _recording(model, wanted, kind) as held, execution(model, "gated"):
        for number, rows in enumerate(batches):
            rule, ids = _Gated(threshold), rows.to(device)
            with use_rule(model, rule):
                logits = model(input_ids=ids, use_cache=False).logits
            gates = {s: gate for s, gate in rule.gates.items() if everywhere or s.layer in wanted}
            for site, value in zip(gates, measure(ids, logits, list(gates.values())), strict=True):
                values.setdefault(site, []).append(value)
                margins.setdefault(site, []).append(rule.margins[site].flatten().float().cpu())
            del logits, rule
            if on_step:
                on_step(number + 1, len(batches))
    found = {site: torch.cat(each) for site, each in sorted(values.items())}
    for site, value in found.items():
        check_finite(model, site, value, "measuring what skipping costs", "gradients")
    read: dict[int, Tensor] = {}
    for site in found:
        if parts := held[site]:
            read[id(parts)] = torch.cat(parts)
            parts.clear()  # so that no more than one layer is held twice
    return {
        site: SiteValues(read.get(id(held[site])), torch.cat(margins[site]), value)
        for site, value in found.items()
    }


@dataclass
class _Gated:
    """A threshold rule whose gates have gradients."""

    threshold: float
    gates: dict[Site, Tensor] = field(default_factory=dict)
    margins: dict[Site, Tensor] = field(default_factory=dict)

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        keep = margin > self.threshold
        gate = self.gates[site] = keep.float().requires_grad_()
        self.margins[site] = margin.detach()
        return ModuleDecision(keep, gate, margin)


class _Recorder(nn.Module):
    """Replaces a router: gives the same margins and keeps what it reads."""

    def __init__(self, router: Router, held: list[Tensor] | None, kind: torch.dtype) -> None:
        super().__init__()
        self.router, self.held, self.kind = router, held, kind

    def margin(self, hidden: Tensor, scale: Scale = 1.0) -> Tensor:
        """Keep logit minus skip logit of hidden times scale, [B, T, D] -> [B, T]."""
        with torch.no_grad():
            if self.held is not None:
                self.held.append((hidden.float() * scale).flatten(0, 1).to("cpu", self.kind))
            return self.router.margin(hidden, scale)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Disable weight gradients and dropout inside the block."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        with in_mode(model, training=False):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


@contextmanager
def _recording(
    model: nn.Module, layers: Collection[int], kind: torch.dtype
) -> Iterator[dict[Site, list[Tensor]]]:
    """Record what the routers of some layers read inside the block, by site."""
    own, held = routers(model), dict[Site, list[Tensor]]()
    shared = routing_state(model).config.input == "layer_input"
    try:
        for layer in routed_layers(model):
            attn, mlp = Site(layer.index, "attn"), Site(layer.index, "mlp")
            is_wanted = layer.index in layers
            held[attn] = []
            held[mlp] = held[attn] if shared else []
            for site, keeps in ((attn, is_wanted), (mlp, is_wanted and not shared)):
                recorder: Any = _Recorder(own[site], held[site] if keeps else None, kind)
                setattr(layer, f"{site.module}_router", recorder)
        yield held
    finally:
        for layer in routed_layers(model):
            for module in MODULES:
                setattr(layer, f"{module}_router", own[Site(layer.index, module)])


def check_finite(model: nn.Module, site: Site, value: Tensor, doing: str, what: str) -> None:
    """Raise a TrainingError if a value [N] that was found at a site is NaN or infinite."""
    finite = torch.isfinite(value)
    if finite.all():
        return
    dtype = str(getattr(model, "dtype", "")).removeprefix("torch.")
    raise TrainingError(
        doing,
        got=f"{len(value) - int(finite.sum()):,} of {len(value):,} {what} of layer {site.layer}, "
        f"{site.module}, that are NaN or infinite ({dtype})",
        expected="finite numbers",
        todo="run with --dtype float32, whose range is wider"
        if dtype == "float16"
        else "get the weights again: whole ones give finite numbers",
    )
