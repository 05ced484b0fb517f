"""Measures what skipping a module costs each token, to second order, in passes over a text.

For a token and a module, skipping takes `delta = module(x) - stand_in(x)` out of the residual
stream. Let `g` be the gradient at that stream of `-log p(y)`, summed over positions, with every `y`
drawn from the model's own distribution. Then the expectation of `(g . delta)^2` over the draws is
`delta^T F delta`, with `F` the Fisher information of the model's output, which is twice the KL
divergence that skipping adds to second order. Labels from the text would not give that: the
square of their gradient estimates the Fisher information only of a model that has converged.

The gradient of the loss with respect to a module's gate is `g . delta` (`gated_passes.py`), so a
cost is its square.

Shapes: B batch, T tokens, D hidden, V vocabulary, N tokens of the whole text.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skipgpt.fitting.gated_passes import Gates, SiteValues, gated_passes
from skipgpt.routing.decision import Site
from skipgpt.system.progress import OnStep


def measure_costs(
    model: nn.Module,
    text: Tensor,
    *,
    layers: Collection[int] | None = None,
    draws: int = 1,
    batch_size: int = 4,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> dict[Site, SiteValues]:
    """Measure what skipping costs each token at each site, and record what routers read.

    Args:
        model: with routers; left as it was.
        text: [N / T, T] token ids.
        layers: layers whose sites are measured; all if None.
        draws: labels drawn per position; each costs one more backward pass.
        batch_size: rows per forward.
        seed: seed of the drawn labels.
        on_step: called with batches done and batches in all.

    Returns:
        By site, in forward order: router inputs, margins and, as `value`, the cost [N] in nats,
        twice the second-order KL divergence that skipping adds. Where one router decides for a
        layer, its attention site has the cost of skipping both modules.

    Raises:
        ConfigError: routers decide for whole sequences.
        TrainingError: a gradient is NaN or infinite.

    Example:
        costs = measure_costs(model, blocks.train[:48])
        costs[Site(0, "mlp")].value.mean()
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

    def costs(_: Tensor, logits: Tensor, gates: Gates) -> list[Tensor]:
        return fisher_costs(logits, gates, draws, generator)

    return gated_passes(model, text, costs, layers=layers, batch_size=batch_size, on_step=on_step)


def fisher_costs(
    logits: Tensor, gates: Gates, draws: int, generator: torch.Generator
) -> list[Tensor]:
    """Return the mean squared gradient [B * T] of each gate over labels drawn from logits."""
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
