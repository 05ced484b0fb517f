"""Measures what skipping a module costs each token, to second order, in passes over a text.

For a token and a module, skipping takes `delta = module(x) - stand_in(x)` out of the residual
stream. Let `g` be the gradient at that stream of `-log p(y)`, summed over positions, with every `y`
drawn from the model's own distribution. Then the expectation of `(g . delta)^2` over the draws is
`delta^T F delta`, with `F` the Fisher information of the model's output, which is twice the KL
divergence that skipping adds to second order. Labels from the text would not give that: the
square of their gradient estimates the Fisher information only of a model that has converged.

A gate multiplies a module's output and, as `1 - gate`, its stand-in's. So the gradient of the loss
with respect to the gate is `g . delta`, whatever the family does after a module, and also where the
gate is 0: a cost is the square of a gate's gradient.

Shapes: B batch, T tokens, D hidden, V vocabulary, N tokens of the whole text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skipgpt.config import RouterConfig
from skipgpt.errors import ConfigError, TrainingError
from skipgpt.model.state import execution, routing_state, use_rule
from skipgpt.model.surgery import routed_layers, routers
from skipgpt.routing.decision import MODULES, ModuleDecision, Site
from skipgpt.routing.router import Router, Scale
from skipgpt.system.progress import OnStep


@dataclass(frozen=True)
class SiteCosts:
    """Costs and router inputs of one site.

    Attributes:
        read: [N, D] what its router reads: float16 and normalised if the router normalises, else
            float32. Sites that read the same share it.
        cost: [N] float32, in nats: twice the second-order KL divergence that skipping adds.
    """

    read: Tensor
    cost: Tensor


@dataclass
class _Gates:
    """A threshold rule whose gates have gradients."""

    threshold: float
    gates: dict[Site, Tensor]

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        keep = margin > self.threshold
        gate = self.gates[site] = keep.float().requires_grad_()
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


WITHOUT_FIT = "train such routers without a fit: --stages router,lora (compare: router@paper)"


def refuse_sequences(config: RouterConfig, doing: str) -> None:
    """Raise if routers decide for whole sequences, whose costs no token has.

    Raises:
        ConfigError: they do.
    """
    if config.decides == "sequence":
        raise ConfigError(
            doing,
            got='router.decides = "sequence"',
            expected="a decision for each token, by module or by layer",
            todo=WITHOUT_FIT,
        )


def measure_costs(
    model: nn.Module,
    text: Tensor,
    *,
    threshold: float = -math.inf,
    layers: Collection[int] | None = None,
    draws: int = 1,
    batch_size: int = 4,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> dict[Site, SiteCosts]:
    """Measure what skipping costs each token at each site, and record what routers read.

    Args:
        model: with routers; left as it was.
        text: [N / T, T] token ids.
        threshold: the threshold of the routes to measure under; minus infinity keeps everything.
        layers: layers whose sites are measured; all if None.
        draws: labels drawn per position; each costs one more backward pass.
        batch_size: rows per forward.
        seed: seed of the drawn labels.
        on_step: called with batches done and batches in all.

    Returns:
        By site, in forward order. Where one router decides for a layer, its attention
        site has the cost of skipping both modules.

    Raises:
        ConfigError: routers decide for whole sequences.
        TrainingError: a gradient is NaN or infinite.

    Example:
        costs = measure_costs(model, blocks.train[:48])
        costs[Site(0, "mlp")].cost.mean()
    """
    config = routing_state(model).config
    refuse_sequences(config, "fitting routers")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    wanted = [
        layer.index for layer in routed_layers(model) if layers is None or layer.index in layers
    ]
    kind = torch.float16 if config.normalize else torch.float32
    batches = text.split(batch_size)  # type: ignore[no-untyped-call]
    costs: dict[Site, list[Tensor]] = {}
    with _at_rest(model), _recording(model, wanted, kind) as held, execution(model, "gated"):
        for number, rows in enumerate(batches):
            rule = _Gates(threshold, {})
            with use_rule(model, rule):
                logits = model(input_ids=rows.to(device), use_cache=False).logits
            gates = {site: gate for site, gate in rule.gates.items() if site.layer in wanted}
            squares = _costs(logits, list(gates.values()), draws, generator)
            for site, cost in zip(gates, squares, strict=True):
                costs.setdefault(site, []).append(cost)
            del logits, rule
            if on_step:
                on_step(number + 1, len(batches))
    found = {site: torch.cat(each) for site, each in sorted(costs.items())}
    _refuse_broken(found, str(getattr(model, "dtype", "")))
    read = {id(held[site]): torch.cat(held[site]) for site in found}
    return {site: SiteCosts(read[id(held[site])], cost) for site, cost in found.items()}


def _costs(
    logits: Tensor, gates: list[Tensor], draws: int, generator: torch.Generator
) -> list[Tensor]:
    """Return the mean squared gradient [B * T] of each gate over drawn labels."""
    flat = logits.flatten(0, 1)
    sums = [torch.zeros(gate.numel()) for gate in gates]
    for draw in range(draws):
        loss = cross_entropy(flat.float(), draw_labels(flat.detach(), generator), reduction="sum")
        found = torch.autograd.grad(loss, gates, retain_graph=draw + 1 < draws)
        for total, gradient in zip(sums, found, strict=True):
            total += gradient.flatten().float().square().cpu() / draws
    return sums


def draw_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token id [N] per row of logits [N, V] from their softmax, by inversion."""
    rows = []
    for some in logits.split(1024):  # type: ignore[no-untyped-call]
        mass = some.float().softmax(-1).cumsum(-1)
        level = torch.rand(len(some), 1, generator=generator, device=some.device) * mass[:, -1:]
        rows.append(torch.searchsorted(mass, level).squeeze(-1).clamp(max=some.shape[-1] - 1))
    return torch.cat(rows)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Disable weight gradients and dropout inside the block."""
    trained, was_training = [p for p in model.parameters() if p.requires_grad], model.training
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        model.train(was_training)
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


def _refuse_broken(costs: dict[Site, Tensor], dtype: str) -> None:
    """Raise if a cost is NaN or infinite.

    Raises:
        TrainingError: one is.
    """
    for site, cost in costs.items():
        if not (finite := torch.isfinite(cost)).all():
            broken = len(cost) - int(finite.sum())
            raise TrainingError(
                "measuring what skipping costs",
                got=f"{broken:,} of {len(cost):,} gradients of layer {site.layer}, {site.module}, "
                f"that are NaN or infinite ({dtype.removeprefix('torch.')})",
                expected="finite numbers",
                todo="run with --dtype float32, where activations cannot overflow",
            )
