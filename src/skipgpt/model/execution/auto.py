"""Execution `auto`: each module packs its kept tokens where that saves time, else runs them all.

The result is the same, since its twins agree. A token alone is never packed: it runs a module or
it does not. Of several tokens, packing saves the products of those that skip and costs looking
them up, taking and putting back rows. Few tokens, small modules, and batches whose weights are
read for one token anyway do not pay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skipgpt.model.execution import kernel_support
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import Module


# How many tokens are kept is data, which a compiled graph cannot have.
@torch.compiler.disable(reason="whether packing pays depends on the data")  # type: ignore[no-untyped-call, untyped-decorator]
def should_pack(
    layer: RoutedLayer, module: Module, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> bool:
    """Whether a layer in execution `auto` runs only the tokens of keep [B, T]."""
    state = layer.routing
    if not state.can_pack:
        return False
    if keep.numel() == 1 or state.config.kv == "skip":
        return True
    if _has_kernels(layer, module, entering, arguments):
        return True
    # Elsewhere counting would have to be waited for; some tokens will skip.
    kept = int(keep.sum()) if keep.device.type == "cpu" else keep.numel() // 2
    return is_worth_packing(layer, module, entering, kept, arguments)


def is_worth_packing(
    layer: RoutedLayer, module: Module, entering: Tensor, kept: int, arguments: dict[str, Any]
) -> bool:
    """Whether packing pays for so many kept tokens of entering [B, T, D]."""
    cached = 0
    if module == "attn" and entering.shape[1] == 1:
        cached = _cached_bytes(arguments[layer.family.cache], layer.index)
    machine = layer.routing.machine(entering)
    return layer.packing.is_worth_packing(machine, module, entering, kept, cached)


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
