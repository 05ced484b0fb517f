"""How the tokens of one module are run: decided here, once per module and forward.

    execution `gated`    every token runs, outputs are multiplied by the gate
    execution `sparse`   kept tokens run, by one of the plans below
    execution `auto`     `sparse` where that saves time in this module, else `gated`

All give the same result. Packing saves the products of the tokens that skip, and costs finding,
gathering and scattering rows. It does not pay for few tokens, for small modules, or for batches
whose weights are read for one token anyway.

Kernels run where a layer consists of what they are known to compute; elsewhere kept tokens are
packed in PyTorch.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.kernels import select
from skipgpt.kernels.interface import Activation
from skipgpt.model import modules
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import MODULES, Module, ModuleDecision

ACTIVATIONS: dict[str, Activation] = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
}
"""Activations that kernels compute, by class name, of torch and of transformers."""

_GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_OWN_SCORES = ("sinks", "attn_logit_softcapping")
"""Attributes by which attention changes its scores."""


class Plan(Enum):
    """One way to run a module for the tokens that keep it."""

    GATED = "every token runs, outputs are multiplied by the gate"
    NOTHING = "no token keeps it; keys and values are computed all the same"
    WHOLE = "every token keeps it, as in the base model"
    ROWS = "kept tokens, packed"
    KEPT_KEYS = 'kept tokens attend to kept tokens (`kv="skip"`)'
    KERNELS = "kept tokens where they are, on a GPU"


# The number of kept tokens depends on the data, which a compiled graph cannot branch on.
@torch.compiler.disable(reason="the plan depends on the data")  # type: ignore[no-untyped-call, untyped-decorator]
def plan(
    layer: RoutedLayer,
    module: Module,
    decision: ModuleDecision,
    dtype: torch.dtype,
    arguments: dict[str, Any],
) -> Plan:
    """Choose how a decision about tokens of a dtype is carried out in `sparse` or `auto`."""
    state, keep, kept = layer.routing, decision.keep, decision.kept
    if kept is None:  # who knows the count decides without kernels, and keeps all keys
        if state.execution == "auto" and not state.can_pack:
            return Plan.GATED
        if has_kernels(layer, module, keep.device, dtype, arguments):
            return Plan.KERNELS
        if module == "attn" and state.config.kv == "skip":
            return Plan.KEPT_KEYS
        # Counting makes the host wait for another device, so half is guessed first.
        half = keep.numel() // 2
        if keep.device.type != "cpu" and not _packs(layer, module, keep, half, dtype, arguments):
            return Plan.GATED
        kept = int(keep.sum())
    if kept == keep.numel():
        return Plan.WHOLE
    # With noise every module takes part in every step, even for no token (`RoutingState.noise`).
    if kept == 0 and state.noise is None:
        return Plan.NOTHING
    return Plan.ROWS if _packs(layer, module, keep, kept, dtype, arguments) else Plan.GATED


def _packs(
    layer: RoutedLayer,
    module: Module,
    keep: Tensor,
    kept: int,
    dtype: torch.dtype,
    arguments: dict[str, Any],
) -> bool:
    """Whether `kept` of the tokens of keep [B, T] are packed: always in `sparse`."""
    if layer.routing.execution == "sparse":
        return True
    cached = 0
    if module == "attn" and keep.shape[1] == 1:
        cached = _cached_bytes(arguments[layer.family.cache], layer.index)
    machine = layer.routing.machine(keep.device, dtype)
    tokens = keep.numel()
    return layer.packing.is_worth_packing(machine, module, tokens, dtype.itemsize, kept, cached)


def _cached_bytes(cache: Any, index: int) -> int:
    """Bytes of a layer's cached keys and values; 0 if the cache does not have them as tensors."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[index], "keys", None) if index < len(layers) else None
    return 2 * keys.numel() * keys.element_size() if isinstance(keys, Tensor) else 0


def needs_host_sync(layer: RoutedLayer) -> bool:
    """Whether a decode step of this layer, without gradients, makes the host wait for the device.

    If not, a step can be captured as a CUDA graph.
    """
    weight, given = next(layer.parameters()), {"attention_mask": None}
    return not all(has_kernels(layer, each, weight.device, weight.dtype, given) for each in MODULES)


def has_kernels(
    layer: RoutedLayer,
    module: Module,
    device: torch.device,
    dtype: torch.dtype,
    arguments: dict[str, Any],
) -> bool:
    """Whether kernels can run the kept tokens of a module where they are.

    They can run gated MLPs of plain linear layers, and causal sdpa whose projections are not fused;
    outputs are added as they are, or scaled; no gradient is needed.
    """
    family = layer.family
    after, name = (
        (family.mlp_after, family.mlp) if module == "mlp" else (family.attn_after, family.attn)
    )
    if (
        select.kernels_for(device, dtype) is None
        or after
        or family.adds_residual
        or layer.training
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(device.type)
    ):
        return False
    part: Any = getattr(layer, name)
    if module == "mlp":
        suits, linears = _is_gated_mlp(part), _GATED_MLP - {"act_fn"}
    else:
        suits = (
            layer.routing.config.kv == "dense"
            and not family.fused
            and len(family.query) == 1
            and _is_plainly_causal(part, arguments)
        )
        linears = {*family.query, family.output}
    return suits and all(_is_bare(getattr(part, each), device, dtype) for each in linears)


def stand_ins_run_whole(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a stand-in runs for all tokens: where there are kernels, the host need not wait.

    It is small, and uses no kernel itself.
    """
    return not torch.is_grad_enabled() and select.kernels_for(device, dtype) is not None


def _is_gated_mlp(mlp: Any) -> bool:
    """Whether an MLP is activation(gate) * up, projected down."""
    return (
        set(type(mlp).forward.__code__.co_names) == _GATED_MLP
        and _is_unhooked(mlp)
        and _is_unhooked(mlp.act_fn)
        and type(mlp.act_fn).__name__ in ACTIVATIONS
    )


def _is_plainly_causal(attn: Any, arguments: dict[str, Any]) -> bool:
    """Whether attention is softmax over earlier keys, computed by transformers' sdpa function."""
    mask = arguments["attention_mask"]
    return (
        _is_unhooked(attn)
        and "ALL_ATTENTION_FUNCTIONS" in type(attn).forward.__code__.co_names
        and attn.config._attn_implementation == "sdpa"
        and modules.is_causal(attn, arguments)
        and all(getattr(attn, name, None) is None for name in _OWN_SCORES)
        and getattr(attn, "head_dim", select.WIDEST_HEAD + 1) <= select.WIDEST_HEAD
        and not hasattr(attn, "v_head_dim")  # values of another size than keys
        and (mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool))
        and (mask is None or (mask.ndim == 4 and mask.shape[1] == 1))  # shared by heads
    )


def _is_bare(linear: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a layer is a plain `nn.Linear` of this device and dtype."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and (linear.weight.dtype, linear.weight.device) == (dtype, device)
        and linear.weight.is_contiguous()
        and _is_unhooked(linear)
    )


def _is_unhooked(module: nn.Module) -> bool:
    """Whether a module has no forward hooks; kernels would not call them."""
    return not module._forward_hooks and not module._forward_pre_hooks
