"""What packing the kept tokens of one layer saves, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from skipgpt.model.families.family import has
from skipgpt.model.families.linear import out_width
from skipgpt.model.loading.bitsandbytes import size
from skipgpt.routing.decision import Module
from skipgpt.system.device_profile import Machine


class PackingCost:
    """Estimates when packing pays in one layer, from the sizes of its weights.

    Of experts, those count that a token runs.
    """

    def __init__(self, layer: Any) -> None:
        family, attn = layer.family, getattr(layer, layer.family.attn)
        self._width = out_width(getattr(attn, family.output))
        projections = (*family.query, family.fused, family.output)
        parts = {
            "attn": [getattr(attn, name) for name in projections if name and has(attn, name)],
            "mlp": [getattr(layer, family.mlp)],
        }
        self._weights = {
            module: sum(size(held) for each in chosen for held in _held(each))
            for module, chosen in parts.items()
        }
        if has(mlp := parts["mlp"][0], "experts"):
            experts = sum(map(size, _held(mlp.experts)))
            self._weights["mlp"] -= int(experts * (1 - family.share_of_experts(layer)))

    def is_worth_packing(
        self,
        machine: Machine,
        module: Module,
        tokens: int,
        number_bytes: int,
        kept: int,
        cached: int = 0,
    ) -> bool:
        """Whether running only `kept` of so many tokens saves more than packing costs.

        `number_bytes` is the size of one weight or activation. `cached` are bytes of keys and
        values that are read if all tokens attend.
        """
        if kept in (0, tokens):
            return True
        weights = self._weights[module]
        saved = machine.product_seconds(weights, tokens, number_bytes)
        saved -= machine.product_seconds(weights, kept, number_bytes)
        saved += cached * (1 - kept / tokens) / machine.bandwidth
        moved = 2 * (tokens + kept) * self._width * number_bytes / machine.bandwidth
        fixed = machine.mlp_packing if module == "mlp" else machine.attn_packing
        return saved > fixed + moved


def _held(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's weights, which quantised layers may hold as buffers."""
    yield from module.parameters()
    yield from module.buffers()
