"""How the tokens of one module are run: decided here, once per module and forward.

    execution `gated`    every token runs, outputs are multiplied by the gate
    execution `sparse`   kept tokens run, by one of the plans below
    execution `auto`     `sparse` where that saves time in this module, else `gated`

All give the same result. Packing saves the products of the tokens that skip, and costs finding,
gathering and scattering rows. It does not pay for few tokens, for small modules, or for batches
whose weights are read for one token anyway.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from skipgpt.model.attention import batch_rows
from skipgpt.model.execution import kernel_support
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import Module


class Plan(Enum):
    """One way to run a module for the tokens that keep it."""

    GATED = "every token runs, outputs are multiplied by the gate"
    NOTHING = "no token keeps it; keys and values are computed all the same"
    WHOLE = "every token keeps it, as in the base model"
    SEQUENCES = "attention of one token per sequence, in the sequences that keep it"
    ROWS = "kept tokens, packed"
    KEPT_KEYS = 'kept tokens attend to kept tokens (`kv="skip"`)'
    KERNELS = "kept tokens where they are, on a GPU"


# The number of kept tokens depends on the data, which a compiled graph cannot branch on.
@torch.compiler.disable(reason="the plan depends on the data")  # type: ignore[no-untyped-call, untyped-decorator]
def plan(
    layer: RoutedLayer, module: Module, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> Plan:
    """Choose how the tokens in keep [B, T] of `entering` [B, T, D] run in `sparse` or `auto`."""
    state = layer.routing
    if state.execution == "auto" and not state.can_pack:
        return Plan.GATED
    if kernel_support.module_kernels(layer, module, entering, arguments) is not None:
        return Plan.KERNELS
    if module == "attn" and state.config.kv == "skip":
        return Plan.KEPT_KEYS
    # Counting makes the host wait for another device, so half is guessed first.
    if keep.device.type != "cpu" and not _packs(
        layer, module, entering, keep.numel() // 2, arguments
    ):
        return Plan.GATED
    return plan_of_count(layer, module, entering, int(keep.sum()), arguments)


def plan_of_count(
    layer: RoutedLayer, module: Module, entering: Tensor, kept: int, arguments: dict[str, Any]
) -> Plan:
    """Choose how `kept` tokens of `entering` [B, T, D] run, without kernels and with all keys."""
    batch, tokens = entering.shape[:2]
    if kept == batch * tokens:
        return Plan.WHOLE
    # With noise every module takes part in every step, even for no token (`RoutingState.noise`).
    if kept == 0 and layer.routing.noise is None:
        return Plan.NOTHING
    if not _packs(layer, module, entering, kept, arguments):
        return Plan.GATED
    if module == "attn" and kept and batch_rows.can_use(layer, tokens, arguments["attention_mask"]):
        return Plan.SEQUENCES
    return Plan.ROWS


def _packs(
    layer: RoutedLayer, module: Module, entering: Tensor, kept: int, arguments: dict[str, Any]
) -> bool:
    """Whether `kept` tokens of `entering` [B, T, D] are packed: always in `sparse`."""
    if layer.routing.execution == "sparse":
        return True
    cached = 0
    if module == "attn" and entering.shape[1] == 1:
        cached = _cached_bytes(arguments[layer.family.cache], layer.index)
    machine = layer.routing.machine(entering)
    return layer.packing.is_worth_packing(machine, module, entering, kept, cached)


def _cached_bytes(cache: Any, index: int) -> int:
    """Bytes of a layer's cached keys and values; 0 if the cache does not have them as tensors."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[index], "keys", None) if index < len(layers) else None
    return 2 * keys.numel() * keys.element_size() if isinstance(keys, Tensor) else 0
