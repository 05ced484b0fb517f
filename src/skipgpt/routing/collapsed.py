"""Both routers of a layer in one product: of two logits only the difference decides.

Shapes: B batch, T query tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from skipgpt.routing.router import KEEP, SKIP, LinearRouter, Router, Scale


class CollapsedRouters:
    """The margin vectors of several linear routers, made anew only where a weight has changed.

    Example:
        >>> attn, mlp = LinearRouter(32), LinearRouter(32)
        >>> attn_margin, mlp_margin = CollapsedRouters().margins(torch.zeros(2, 7, 32), attn, mlp)
    """

    def __init__(self) -> None:
        self._made_from: list[tuple[Tensor, int, int]] = []
        self._vectors: tuple[Tensor, Tensor] | None = None
        self._biases: list[float] = []

    def margins(self, hidden: Tensor, *routers: Router, scale: Scale = 1.0) -> tuple[Tensor, ...]:
        """Margins [B, T] of each router for hidden states [B, T, D] times scale."""
        single = [router for router in routers if isinstance(router, LinearRouter)]
        if len(single) < len(routers):
            return tuple(router.margin(hidden, scale) for router in routers)
        weight, bias = self._collapsed(single)
        return (linear(hidden.to(weight.dtype), weight) * scale + bias).unbind(-1)

    def alone(self, hidden: Tensor, *routers: Router, scale: float = 1.0) -> list[float] | None:
        """The margins for one token [1, 1, D] as numbers; None where a head is not linear.

        As tensors of one element they take longer to compare than to compute.
        """
        single = [router for router in routers if isinstance(router, LinearRouter)]
        if len(single) < len(routers):
            return None
        vectors = self._collapsed(single)
        weight, biases = vectors[0], self._biases
        if vectors is not self._vectors:
            biases = vectors[1].tolist()
        products = torch.mv(weight, hidden.view(-1).to(weight.dtype)).tolist()
        return [product * scale + bias for product, bias in zip(products, biases, strict=True)]

    def _collapsed(self, routers: list[LinearRouter]) -> tuple[Tensor, Tensor]:
        """Weights [routers, D] and biases [routers]."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return _collapse(routers)
        # Looked up where torch keeps parameters: an attribute takes ten times as long.
        read: list[Any] = [each for router in routers for each in router._parameters.values()]
        if self._vectors is not None and self._is_made_from(read):
            return self._vectors
        vectors = _collapse(routers)
        if all(map(_is_counted, read)):
            self._vectors, self._biases = vectors, vectors[1].tolist()
            # Held, so that no other tensor can come to lie at the same address.
            self._made_from = [(each.detach(), each.data_ptr(), each._version) for each in read]
        return vectors

    def _is_made_from(self, read: list[Tensor]) -> bool:
        for (_, place, version), now in zip(self._made_from, read, strict=True):
            if now.data_ptr() != place or now._version != version:
                return False
        return True


def _collapse(routers: list[LinearRouter]) -> tuple[Tensor, Tensor]:
    weight = torch.stack([router.weight[KEEP] - router.weight[SKIP] for router in routers])
    bias = torch.stack([router.bias[KEEP] - router.bias[SKIP] for router in routers])
    return weight, bias


def _is_counted(parameter: Tensor) -> bool:
    """Whether torch counts the changes of a tensor."""
    return type(parameter) is nn.Parameter and not parameter.is_inference()
