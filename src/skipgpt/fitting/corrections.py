"""Corrects routers by what decisions cost under the routes.

Costs are those of one decision in an otherwise dense model. Many together cost more, and not all by
the same factor. So under the routes of the target, the KL divergence to the dense model is expanded
to second order in each gate: what skipping costs, with everything else as it is routed, is

    value = -dKL/dgate + cost / 2   of a module that runs,
    value = -dKL/dgate - cost / 2   of one that is skipped,

with the cost of `costs.py`, measured there. Values of single tokens may be negative; their mean,
where routers read the same, is what a margin should predict. Margins predict

    price * saved * exp(margin - threshold),

with one price for the whole model. So each margin moves by the relative error of that prediction,
as far as a linear map of what its last layer reads predicts the error: one step of Newton's method
for all routers at once. Tokens count the more the nearer they are to the threshold; far from it
nothing changes a decision.

Shapes: N tokens, D hidden, F inputs of a router's last layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from skipgpt.cost import Savings, saved_by_router
from skipgpt.fitting.costs import fisher_costs
from skipgpt.fitting.gated_passes import Gates, SiteValues, gated_passes
from skipgpt.fitting.heads import add_linear, last_inputs
from skipgpt.fitting.regression import HELD_OUT
from skipgpt.model.state import execution
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import Site
from skipgpt.system.progress import OnStep

SPREAD = 1.5
"""Distance to the threshold at which a token's weight is down to 1 / e."""
MOST = 20.0
"""Largest relative error that counts, so that single tokens do not decide."""
RIDGES = (0.3, 1.0, 3.0, 10.0)
"""Weight penalties per token; held-out error chooses one."""
SURE = 0.3
"""Standard error at which a site's mean correction is shrunk to half."""
FAR = 6 * SPREAD
"""Beyond this distance tokens do not count."""
LEAST = 0.01
"""Weight, in the regression, of tokens far from the threshold, whose error counts as zero."""
NEAR, FEWEST = 1.0, 300
"""A site is corrected by its tokens this near to the threshold, if there are so many. Sites that
nearly all tokens run are left alone: what a few of them would lose there is not seen in a mean."""
FACTORS = (0.25, 4.0)
"""Smallest and largest factor by which one correction changes a site's predictions."""


def measure_values(
    model: nn.Module,
    text: Tensor,
    threshold: float,
    *,
    layers: Collection[int] | None = None,
    draws: int = 1,
    batch_size: int = 4,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> dict[Site, SiteValues]:
    """Measure what skipping costs each token at each site under the routes of a threshold.

    Arguments and errors are those of `measure_costs`, except that values are of all layers, and
    router inputs are kept of `layers`.

    Returns:
        By site, in nats: the KL divergence to the dense model if the token skips, less that if it
        runs, to second order.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

    def values(ids: Tensor, logits: Tensor, gates: Gates) -> list[Tensor]:
        with torch.no_grad(), execution(model, "dense"):
            dense = model(input_ids=ids, use_cache=False).logits.float().softmax(-1)
            # The gradient of KL(dense || routed), summed over tokens, at the routed logits.
            apart = (logits.float().softmax(-1) - dense).to(logits.dtype)
        slopes = torch.autograd.grad(logits, gates, apart, retain_graph=True)
        costs = fisher_costs(logits, gates, draws, generator)
        return [
            -slope.flatten().float().cpu() + (gate.detach().flatten().float().cpu() - 0.5) * cost
            for slope, gate, cost in zip(slopes, gates, costs, strict=True)
        ]

    return gated_passes(
        model,
        text,
        values,
        threshold=threshold,
        layers=layers,
        everywhere=True,
        batch_size=batch_size,
        on_step=on_step,
    )


Correction = tuple[float, Tensor | None]
"""What is added to a margin: a number, and a map [F] of the last layer's inputs, or None."""


@torch.no_grad()
def corrections(
    model: nn.Module,
    found: dict[Site, SiteValues],
    savings: Savings,
    threshold: float,
    price: float,
    by_token: bool = True,
    on_step: OnStep | None = None,
) -> dict[Site, Correction]:
    """Predict the relative error of what each router predicts, where its inputs were kept.

    `found` was measured at the threshold, and the price is that of all sites (`price_of`). The
    error is predicted from what the router reads (`by_token`), or from the site alone.

    Returns:
        By site; sites with too few tokens near the threshold are left out.
    """
    made: dict[Site, Correction] = {}
    ratios = _ratios(
        model, {s: v for s, v in found.items() if v.read is not None}, savings, threshold
    )
    for number, (site, ratio) in enumerate(ratios.items(), 1):
        router, distance = routers(model)[site], found[site].margin - threshold
        near = ratio[distance.abs() < NEAR] / price
        weight = (-(distance / SPREAD).square()).exp()
        if len(near) >= FEWEST:
            unsure = (near.var() / len(near)).item() / SURE**2
            factor = min(max(1 + (near.mean().item() - 1) / (1 + unsure), FACTORS[0]), FACTORS[1])
            weights = None
            if by_token:
                device = next(router.parameters()).device
                inputs = last_inputs(router, cast("Tensor", found[site].read).to(device).float())
                error = (ratio / price / factor - 1).clamp(-MOST, MOST)
                weights = predict_error(inputs, error.to(device), weight.to(device))
            made[site] = math.log(factor), weights
        if on_step:
            on_step(number, len(ratios))
    return made


def apply_corrections(model: nn.Module, made: dict[Site, Correction]) -> None:
    """Add corrections to the margins of a model's routers, in place."""
    for site, (shift, weight) in made.items():
        add_linear(routers(model)[site], weight, shift)


def price_of(
    model: nn.Module, found: dict[Site, SiteValues], savings: Savings, threshold: float
) -> float | None:
    """Return the nats per share saved of tokens near the threshold; arguments as above.

    None if there are too few such tokens, or if skipping them gains: nothing to equalise.
    """
    total, count = 0.0, 0
    for site, ratio in _ratios(model, found, savings, threshold).items():
        near = ratio[(found[site].margin - threshold).abs() < NEAR]
        total, count = total + near.sum().item(), count + len(near)
    return total / count if count >= FEWEST and total > 0 else None


def _ratios(
    model: nn.Module, found: dict[Site, SiteValues], savings: Savings, threshold: float
) -> dict[Site, Tensor]:
    """Values over what margins predict, up to the price, of sites that save anything.

    Zero far from the threshold, where no token has weight and exponentials overflow.
    """
    saved, made = saved_by_router(model, savings), {}
    for site, each in found.items():
        if saved[site] > 0:
            distance = each.margin - threshold
            near = distance.abs() < FAR
            predicted = distance.clamp(-FAR, FAR).exp() * saved[site]
            made[site] = torch.where(near, each.value / predicted, 0.0)
    return made


def predict_error(inputs: Tensor, error: Tensor, weight: Tensor) -> Tensor | None:
    """Regress errors [N] on inputs [N, F] by weighted ridge; return the map [F].

    The last fifth of the tokens chooses the ridge, and the chosen one is fitted to all. None if no
    ridge predicts better than nothing. Tokens far from the threshold hold the map small.
    """
    error = torch.where(weight > LEAST, error, 0.0)
    weight = weight.clamp(min=LEAST)
    count = len(inputs) - int(HELD_OUT * len(inputs))
    gram, moment = _sums(inputs[:count], error[:count], weight[:count])
    tail, of_tail, tail_weight = inputs[count:], error[count:], weight[count:]
    best, least = None, (tail_weight * of_tail.square()).sum().item()
    identity = torch.eye(inputs.shape[1], device=inputs.device)
    for ridge in RIDGES:
        found = torch.linalg.solve(gram + ridge * weight[:count].sum() * identity, moment)
        missed = (tail_weight * (of_tail - tail @ found).square()).sum().item()
        if missed < least:
            best, least = ridge, missed
    if best is None:
        return None
    rest, of_rest = _sums(tail, of_tail, tail_weight)
    penalised = gram + rest + best * weight.sum() * identity
    whole: Tensor = torch.linalg.solve(penalised, moment + of_rest)
    return whole


def _sums(inputs: Tensor, error: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    weighted = inputs * weight[:, None]
    return weighted.T @ inputs, weighted.T @ error
