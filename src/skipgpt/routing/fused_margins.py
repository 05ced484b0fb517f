"""Both routers of a layer in one product: of two logits only the difference decides.

Shapes: B batch, T query tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from skipgpt.routing.router import KEEP, SKIP, LinearRouter, Router, Scale, in_full_precision


def margins(hidden: Tensor, *routers: Router, scale: Scale = 1.0) -> tuple[Tensor, ...]:
    """Margins [B, T] of each router for hidden states [B, T, D] times scale.

    Example:
        >>> attn, mlp = LinearRouter(32), LinearRouter(32)
        >>> attn_margin, mlp_margin = margins(torch.zeros(2, 7, 32), attn, mlp)
    """
    linears = _at_hand(routers)
    if linears is None:
        return tuple(router.margin(hidden, scale) for router in routers)
    weights = torch.stack([router.weight for router in linears])
    biases = torch.stack([router.bias for router in linears])
    weight, bias = weights[:, KEEP] - weights[:, SKIP], biases[:, KEEP] - biases[:, SKIP]
    with in_full_precision(hidden):
        return (linear(hidden.to(weight.dtype), weight) * scale + bias).unbind(-1)


def margins_as_numbers(
    hidden: Tensor, *routers: Router, scales: list[float]
) -> list[list[float]] | None:
    """Margins of each router for few tokens [B, 1, D] as floats; None where tensors are needed.

    For so few elements tensor overhead exceeds the arithmetic. `scales` has one factor per token.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        return None
    weights: list[Tensor] = []
    shifts = []
    for router in routers:
        # A look-up in `_parameters` takes a tenth of the time of attribute access.
        weight, bias = router._parameters.get("weight"), router._parameters.get("bias")
        if weight is None or bias is None or weight.is_meta:
            return None
        if weight.dtype != torch.float32:  # with fewer bits, floats and tensors round differently
            return None
        weights.append(weight)
        shift = bias.tolist()
        shifts.append(shift[KEEP] - shift[SKIP])
    both = torch.cat(weights)
    logits = linear(hidden.flatten(0, 1).to(both.dtype), both).tolist()
    return [
        [
            (row[2 * n + KEEP] - row[2 * n + SKIP]) * scale + shift
            for row, scale in zip(logits, scales, strict=True)
        ]
        for n, shift in enumerate(shifts)
    ]


def _at_hand(routers: tuple[Router, ...]) -> list[LinearRouter] | None:
    """The routers, if all are linear and none is offloaded."""
    linears = [r for r in routers if isinstance(r, LinearRouter) and r.has_weights]
    return linears if len(linears) == len(routers) else None
