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
    """One way to run the kept tokens of a module."""

    NOTHING = "no token keeps it; keys and values are computed all the same"
    WHOLE = "every token keeps it, as in the base model"
    SEQUENCES = "attention of one token per sequence, in the sequences that keep it"
    ROWS = "kept tokens, packed"
    KEPT_KEYS = 'kept tokens attend to kept tokens (`kv="skip"`)'
    KERNELS = "kept tokens where they are, on a GPU"


def plan(
    layer: RoutedLayer, module: Module, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> Plan:
    """Choose the plan by which a module runs the tokens `keep` [B, T] of `entering` [B, T, D].

    Args:
        layer: with the module.
        module: which of them.
        entering: what the module's norm reads.
        keep: which tokens run it.
        arguments: of attention, by name.
    """
    if _has_kernels(layer, module, entering, arguments):
        return Plan.KERNELS
    if module == "attn" and layer.routing.config.kv == "skip":
        return Plan.KEPT_KEYS
    return plan_of_count(layer, module, int(keep.sum()), keep.shape, arguments)


def plan_of_count(
    layer: RoutedLayer, module: Module, kept: int, shape: tuple[int, ...], arguments: dict[str, Any]
) -> Plan:
    """Choose the plan for so many kept tokens out of [B, T], without kernels and with all keys."""
    batch, tokens = shape
    if kept == batch * tokens:
        return Plan.WHOLE
    # With noise every module takes part in every step, even for no token (`RoutingState.noise`).
    if kept == 0 and layer.routing.noise is None:
        return Plan.NOTHING
    if module == "attn" and kept and batch_rows.can_use(layer, tokens, arguments["attention_mask"]):
        return Plan.SEQUENCES
    return Plan.ROWS


# The number of kept tokens depends on the data, which a compiled graph cannot branch on.
@torch.compiler.disable(reason="whether packing pays depends on the data")  # type: ignore[no-untyped-call, untyped-decorator]
def should_pack(
    layer: RoutedLayer, module: Module, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> bool:
    """Whether execution `auto` runs a module as `sparse` for the tokens `keep` [B, T]."""
    state = layer.routing
    if not state.can_pack:
        return False
    # A single token runs a module or does not: nothing is packed.
    if keep.numel() == 1 or state.config.kv == "skip":
        return True
    if _has_kernels(layer, module, entering, arguments):
        return True
    # On other devices counting would make the host wait; half is a guess.
    kept = int(keep.sum()) if keep.device.type == "cpu" else keep.numel() // 2
    return is_worth_packing(layer, module, entering, kept, arguments)


def is_worth_packing(
    layer: RoutedLayer, module: Module, entering: Tensor, kept: int, arguments: dict[str, Any]
) -> bool:
    """Whether packing saves time for `kept` tokens of `entering` [B, T, D]."""
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
    """Bytes of a layer's cached keys and values; 0 if the cache does not have them as tensors."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[index], "keys", None) if index < len(layers) else None
    return 2 * keys.numel() * keys.element_size() if isinstance(keys, Tensor) else 0
