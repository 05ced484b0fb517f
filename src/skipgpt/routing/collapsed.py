"""Both routers of a layer in one product: of two logits only the difference decides.

Shapes: B batch, T query tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from skipgpt.routing.router import KEEP, SKIP, LinearRouter, Router


class CollapsedRouters:
    """The margin vectors of several linear routers, made anew only where a weight has changed.

    Example:
        >>> attn, mlp = LinearRouter(32), LinearRouter(32)
        >>> attn_margin, mlp_margin = CollapsedRouters().margins(torch.zeros(2, 7, 32), attn, mlp)
    """

    def __init__(self) -> None:
        self._made_from: list[tuple[Tensor, int]] = []
        self._vectors: tuple[Tensor, Tensor] | None = None

    def margins(self, hidden: Tensor, *routers: Router) -> tuple[Tensor, ...]:
        """Margins [B, T] of each router for hidden states [B, T, D]."""
        single = [router for router in routers if isinstance(router, LinearRouter)]
        if len(single) < len(routers):
            return tuple(router.margin(hidden) for router in routers)
        weight, bias = self._collapsed(single)
        return linear(hidden.to(weight.dtype), weight, bias).unbind(-1)

    def _collapsed(self, routers: list[LinearRouter]) -> tuple[Tensor, Tensor]:
        """Weights [routers, D] and biases [routers]."""
        read: list[Tensor] = [each for router in routers for each in (router.weight, router.bias)]
        compiling = torch.compiler.is_compiling()
        if compiling or torch.is_grad_enabled() or not all(map(_is_counted, read)):
            return _collapse(routers)
        if self._vectors is None or not self._is_made_from(read):
            self._vectors = _collapse(routers)
            # Held, so that no other tensor can come to lie at the same address.
            self._made_from = [(each.detach(), each._version) for each in read]
        return self._vectors

    def _is_made_from(self, read: list[Tensor]) -> bool:
        return all(
            held.data_ptr() == now.data_ptr() and version == now._version
            for (held, version), now in zip(self._made_from, read, strict=True)
        )


def _collapse(routers: list[LinearRouter]) -> tuple[Tensor, Tensor]:
    weight = torch.stack([router.weight[KEEP] - router.weight[SKIP] for router in routers])
    bias = torch.stack([router.bias[KEEP] - router.bias[SKIP] for router in routers])
    return weight, bias


def _is_counted(parameter: Tensor) -> bool:
    """Whether torch counts the changes of a tensor."""
    return type(parameter) is nn.Parameter and not parameter.is_inference()
