"""Which layers can run with kernels, judged by what their modules consist of.

Where kernels are not known to be correct, kept tokens are packed in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.kernels.interface import Activation, Kernels
from skipgpt.kernels.select import WIDEST_HEAD, kernels_for
from skipgpt.model import modules
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import MODULES, Module

ACTIVATIONS: dict[str, Activation] = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
}
"""Activations by class name, of torch and of transformers."""

_GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_OWN_SCORES = ("sinks", "attn_logit_softcapping")
"""Attributes by which attention changes its scores."""


def needs_host_sync(layer: RoutedLayer) -> bool:
    """Whether a decode step of this layer, without gradients, makes the host wait for the device.

    If not, a step can be captured as a CUDA graph.
    """
    probe = next(layer.parameters()).new_empty(1, 1, 1)
    given: dict[str, Any] = {"attention_mask": None}
    return any(module_kernels(layer, module, probe, given) is None for module in MODULES)


def supported_kernels(stream: Tensor) -> Kernels:
    """The kernels for this tensor, once a plan has found that there are any."""
    kernels = kernels_for(stream)
    assert kernels is not None
    return kernels


def module_kernels(
    layer: RoutedLayer, module: Module, stream: Tensor, arguments: dict[str, Any]
) -> Kernels | None:
    """The kernels that run kept tokens of a module where they are; None if it has to pack."""
    if module == "mlp":
        return mlp_kernels(layer, stream)
    return attention_kernels(layer, stream, arguments)


def mlp_kernels(layer: RoutedLayer, stream: Tensor) -> Kernels | None:
    """The kernels for this layer's MLP; None unless it is gated and of plain linear layers."""
    kernels = kernels_for(stream)
    if kernels is None or not _plain_residual(layer, layer.family.mlp_after, stream):
        return None
    module = getattr(layer, layer.family.mlp)
    names = set(type(module).forward.__code__.co_names)
    suits = (
        names == _GATED_MLP
        and _is_unhooked(module)
        and _is_unhooked(module.act_fn)
        and type(module.act_fn).__name__ in ACTIVATIONS
        and all(_is_bare(getattr(module, name), stream) for name in _GATED_MLP - {"act_fn"})
    )
    return kernels if suits else None


def attention_kernels(
    layer: RoutedLayer, stream: Tensor, arguments: dict[str, Any]
) -> Kernels | None:
    """The kernels for this layer's attention; None unless it is causal sdpa, not fused."""
    kernels, family = kernels_for(stream), layer.family
    if kernels is None or not _plain_residual(layer, family.attn_after, stream):
        return None
    attn = getattr(layer, family.attn)
    if layer.routing.config.kv == "skip" or family.fused or len(family.query) != 1:
        return None
    suits = all(
        _is_bare(getattr(attn, name), stream) for name in (*family.query, family.output)
    ) and _is_plainly_causal(attn, arguments)
    return kernels if suits else None


def stand_in_kernels(stream: Tensor) -> Kernels | None:
    """The kernels, if any, with which a stand-in runs for all tokens; it uses none itself."""
    return None if torch.is_grad_enabled() else kernels_for(stream)


def _is_plainly_causal(attn: Any, arguments: dict[str, Any]) -> bool:
    """Whether attention is softmax over earlier keys, computed by transformers' sdpa function."""
    mask = arguments["attention_mask"]
    return (
        _is_unhooked(attn)
        and "ALL_ATTENTION_FUNCTIONS" in type(attn).forward.__code__.co_names
        and attn.config._attn_implementation == "sdpa"
        and modules.is_causal(attn, arguments)
        and all(getattr(attn, name, None) is None for name in _OWN_SCORES)
        and getattr(attn, "head_dim", WIDEST_HEAD + 1) <= WIDEST_HEAD
        and not hasattr(attn, "v_head_dim")  # values of another size than keys
        and (mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool))
        and (mask is None or (mask.ndim == 4 and mask.shape[1] == 1))  # shared by heads
    )


def _plain_residual(layer: RoutedLayer, after: tuple[str, ...], stream: Tensor) -> bool:
    """Whether a module's output is added as it is, or scaled, and no gradient is needed."""
    return (
        not after
        and not layer.family.adds_residual
        and not layer.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(stream.device.type)
    )


def _is_bare(linear: Any, stream: Tensor) -> bool:
    """Whether a layer is a plain `nn.Linear` of the stream's dtype and device."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and (linear.weight.dtype, linear.weight.device) == (stream.dtype, stream.device)
        and linear.weight.is_contiguous()
        and _is_unhooked(linear)
    )


def _is_unhooked(module: nn.Module) -> bool:
    """Whether a module has no forward hooks; kernels would not call them."""
    return not module._forward_hooks and not module._forward_pre_hooks
