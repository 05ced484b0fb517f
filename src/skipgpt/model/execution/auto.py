"""Execution `auto`: each module packs its kept tokens where that saves time, else runs them all.

The result is the same, since its twins agree. A token alone is never packed: it runs a module or
it does not. Of several tokens, packing saves the products of those that skip and costs looking
them up, taking and putting back rows. Few tokens, small modules, and batches whose weights are
read for one token anyway do not pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skipgpt.model.execution import kernel_support
from skipgpt.model.families.family import has
from skipgpt.model.loading.bitsandbytes import size
from skipgpt.routing.decision import Module

if TYPE_CHECKING:
    from skipgpt.model.layer import RoutedLayer
    from skipgpt.system.device_profile import Machine


class Packing:
    """What packing is worth in one layer.

    Args:
        layer: whose modules are counted, as they are now; of experts, those that a token runs.
    """

    def __init__(self, layer: Any) -> None:
        family, attn = layer.family, getattr(layer, layer.family.attn)
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

    def pays(
        self, machine: Machine, module: Module, entering: Tensor, kept: int, cached: int = 0
    ) -> bool:
        """Whether running only some tokens is worth packing them.

        Args:
            machine: where it runs.
            module: whose tokens they are.
            entering: [B, T, D], what would be packed.
            kept: how many of them run.
            cached: bytes of keys and values that are read if all tokens attend.
        """
        tokens, number_bytes = entering.shape[:2].numel(), entering.element_size()
        if kept in (0, tokens):
            return True
        weights = self._weights[module]
        saved = machine.product_seconds(weights, tokens, number_bytes)
        saved -= machine.product_seconds(weights, kept, number_bytes)
        saved += cached * (1 - kept / tokens) / machine.bandwidth
        moved = 2 * (tokens + kept) * entering.shape[-1] * number_bytes / machine.bandwidth
        fixed = machine.mlp_packing if module == "mlp" else machine.attn_packing
        return saved > fixed + moved


def _held(module: nn.Module) -> Iterator[Tensor]:
    """Weights, of which quantised layers may make buffers."""
    yield from module.parameters()
    yield from module.buffers()


# How many tokens are kept is data, which a compiled graph cannot have.
@torch.compiler.disable(reason="whether packing pays depends on the data")  # type: ignore[no-untyped-call, untyped-decorator]
def packs(
    layer: RoutedLayer, module: Module, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> bool:
    """Whether a layer in execution `auto` runs only the tokens of keep [B, T]."""
    state = layer.routing
    if not state.may_pack:
        return False
    if keep.numel() == 1 or state.config.kv == "skip":
        return True
    if _has_kernels(layer, module, entering, arguments):
        return True
    # Elsewhere counting would have to be waited for; some tokens will skip.
    kept = int(keep.sum()) if keep.device.type == "cpu" else keep.numel() // 2
    return pays(layer, module, entering, kept, arguments)


def pays(
    layer: RoutedLayer, module: Module, entering: Tensor, kept: int, arguments: dict[str, Any]
) -> bool:
    """Whether packing pays for so many kept tokens of entering [B, T, D]."""
    cached = 0
    if module == "attn" and entering.shape[1] == 1:
        cached = _cached_bytes(arguments[layer.family.cache], layer.index)
    machine = layer.routing.machine(entering)
    return layer.packing.pays(machine, module, entering, kept, cached)


def _has_kernels(
    layer: RoutedLayer, module: Module, entering: Tensor, arguments: dict[str, Any]
) -> bool:
    """Whether kernels take kept tokens where they are, so that nothing is packed."""
    if module == "mlp":
        return kernel_support.mlp_kernels(layer, entering) is not None
    return kernel_support.attention_kernels(layer, entering, arguments) is not None


def _cached_bytes(cache: Any, index: int) -> int:
    """Of a layer's keys and values, where the cache has them as tensors."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[index], "keys", None) if index < len(layers) else None
    return 2 * keys.numel() * keys.element_size() if isinstance(keys, Tensor) else 0
