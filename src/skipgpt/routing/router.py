"""The router: hidden states in, one keep and one skip logit out (paper).

Shapes: B batch, T query tokens, D hidden. The last axis of logits is `(KEEP, SKIP)`. Decisions
need only the margin, `logits[..., KEEP] - logits[..., SKIP]`: a module is kept where the margin
is above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from skipgpt.config import RouterConfig
from skipgpt.system.sharded import assign, full_tensor

KEEP, SKIP = 0, 1
EPSILON = 1e-6

Scale = Tensor | float
"""Factor on hidden states [B, T, D]: [B, T, 1], or one number."""


class LinearMap(nn.Module):
    """The linear map `x W^T + b` that routers and stand-ins are made of; b may be left out.

    It has the parameters and the initialisation of `nn.Linear`, and is none, on purpose. Quantisers
    (bitsandbytes, torchao, torch's own) and PEFT's `all-linear` look for that class and replace it;
    decisions would be rounded, or fail.

    Example:
        >>> LinearMap(32, 4)(torch.zeros(2, 7, 32)).shape
        torch.Size([2, 7, 4])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.bias: nn.Parameter
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if bias:
            bound = 1 / math.sqrt(in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows […, in_features] to […, out_features]."""
        return nn.functional.linear(rows, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes, as `nn.Linear` prints them."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"


class Router(nn.Module):
    """A head: hidden states [B, T, D] in, logits [B, T, 2] out. A new one goes into `HEADS`.

    A head is made of `LinearMap` layers, takes the hidden size alone, and defines `forward` and
    `last`.
    """

    @property
    def last(self) -> LinearMap:
        """The layer that gives the logits."""
        raise NotImplementedError

    def margin(self, hidden: Tensor, scale: Scale = 1.0) -> Tensor:
        """Keep logit minus skip logit of hidden times scale, [B, T, D] -> [B, T]."""
        with in_full_precision(hidden):
            logits: Tensor = self(hidden.to(self.last.weight.dtype) * scale)
            return logits[..., KEEP] - logits[..., SKIP]


class LinearRouter(LinearMap, Router):
    """One linear map D -> 2, the router of the paper and of the released checkpoints.

    Example:
        >>> LinearRouter(32)(torch.zeros(2, 7, 32)).shape
        torch.Size([2, 7, 2])
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 2)

    @property
    def last(self) -> LinearMap:
        """The one layer that there is."""
        return self

    def margin(self, hidden: Tensor, scale: Scale = 1.0) -> Tensor:
        """Keep logit minus skip logit of hidden times scale, [B, T, D] -> [B, T]."""
        if _is_one_product(self):
            return margins(hidden, self, scale=scale)[0]
        return super().margin(hidden, scale)


class MLPRouter(Router):
    """Two linear maps D -> D/4 -> ReLU -> 2, the head of the authors' training code."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.up = LinearMap(hidden_size, max(1, hidden_size // 4))
        self.out = LinearMap(max(1, hidden_size // 4), 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits, [B, T, D] -> [B, T, 2]."""
        logits: Tensor = self.out(relu(self.up(hidden.to(self.up.weight.dtype))))
        return logits

    @property
    def last(self) -> LinearMap:
        """The second layer."""
        return self.out


HEADS: Mapping[str, type[Router]] = {"linear": LinearRouter, "mlp": MLPRouter}
"""By the name in `RouterConfig.head`."""


def margins(hidden: Tensor, *routers: Router, scale: Scale = 1.0) -> tuple[Tensor, ...]:
    """Margins [B, T] of each router for hidden states [B, T, D] times scale, in one product.

    Of two logits only the difference decides.

    Example:
        >>> attn, mlp = LinearRouter(32), LinearRouter(32)
        >>> attn_margin, mlp_margin = margins(torch.zeros(2, 7, 32), attn, mlp)
    """
    linears = [router for router in routers if _is_one_product(router)]
    if len(linears) < len(routers):
        return tuple(router.margin(hidden, scale) for router in routers)
    weights = torch.stack([router.weight for router in linears])
    biases = torch.stack([router.bias for router in linears])
    weight, bias = weights[:, KEEP] - weights[:, SKIP], biases[:, KEEP] - biases[:, SKIP]
    with in_full_precision(hidden):
        return (linear(hidden.to(weight.dtype), weight) * scale + bias).unbind(-1)


def _is_one_product(router: Router) -> TypeGuard[LinearRouter]:
    """Whether a router's margin is one product with weights that are present.

    A class of its own may compute something else; offloaded or sharded weights are present only
    during a call.
    """
    if type(router) is not LinearRouter:
        return False
    # A look-up in `_parameters` takes a tenth of the time of attribute access.
    weight: Any = router._parameters["weight"]
    return not weight.is_meta and weight.numel() > 0


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
        if not _is_one_product(router):
            return None
        held: Any = router._parameters
        weight, bias = held["weight"], held["bias"]
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


def in_full_precision(hidden: Tensor) -> AbstractContextManager[object]:
    """Switch off autocast, whose 8 bits of precision would change decisions near the threshold."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def build_router(config: RouterConfig, hidden_size: int) -> Router:
    """A new router with the authors' initialisation: Kaiming-uniform weights, zero biases."""
    router = HEADS[config.head](hidden_size)
    layers = [m for m in router.modules() if isinstance(m, LinearMap)]
    for number, layer in enumerate(layers, 1):
        nn.init.kaiming_uniform_(
            layer.weight, nonlinearity="linear" if number == len(layers) else "relu"
        )
        nn.init.zeros_(layer.bias)
    return router


@torch.no_grad()
def set_constant(router: Router, margin: float) -> None:
    """Make a router answer the same margin for every token, whatever it reads."""
    for parameter in router.last.parameters():
        assign(parameter, torch.zeros_like(full_tensor(parameter)))
    add_to_margin(router, margin)


@torch.no_grad()
def add_to_margin(router: Router, amount: float) -> None:
    """Shift a router's margin by the same amount for every token."""
    bias = router.last.bias
    shifted = full_tensor(bias).clone()
    shifted[KEEP] += amount / 2
    shifted[SKIP] -= amount / 2
    assign(bias, shifted)


def input_scale(hidden: Tensor, config: RouterConfig) -> Scale:
    """The factor on a router's input [B, T, D]: one over its RMS if so configured.

    Applied after a linear map, it needs no normalised copy of the input.
    """
    return inverse_rms(hidden) if config.normalize else 1.0


def inverse_rms(hidden: Tensor) -> Tensor:
    """One over the root mean square of hidden states [B, T, D], float32 [B, T, 1]."""
    return hidden.float().pow(2).mean(-1, keepdim=True).add(EPSILON).rsqrt()


def inverse_rms_as_numbers(hidden: Tensor) -> list[float]:
    """`inverse_rms` of few tokens [B, 1, D], one Python float each."""
    lengths = torch.linalg.vector_norm(hidden, dim=(1, 2), dtype=torch.float32).tolist()
    size = hidden.shape[-1]
    return [(length * length / size + EPSILON) ** -0.5 for length in lengths]


def divided_by_rms(hidden: Tensor) -> Tensor:
    """Hidden states [B, T, D] divided by their root mean square, without parameters."""
    return (hidden.float() * inverse_rms(hidden)).to(hidden.dtype)


def mean_of_rows(margin: Tensor, real: Tensor | None) -> Tensor:
    """The mean margin [B, 1] of the real tokens of each row of margins [B, T]."""
    if real is None:
        return margin.mean(1, keepdim=True)
    return (margin * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
