"""Calls a family's norms, attention and MLP by the names in its table row.

Every part is the family's own module. Shapes: B batch, T tokens (or packed tokens), D hidden.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from skipgpt.errors import ConfigError
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import Module

_MISFIT = ("Sizes of tensors must match", "index_copy_()")
"""Parts of torch's errors where new keys cannot be joined to those of a cache."""


def pre_norm(layer: RoutedLayer, module: Module, stream: Tensor) -> Tensor:
    """Apply the norm before a module to the stream [B, T, D]; identity without one."""
    family = layer.family
    names = family.attn_norm if module == "attn" else family.mlp_norm
    # A look-up in `_modules` takes a tenth of the time of attribute access.
    for name in names:
        if (norm := layer._modules.get(name)) is not None:
            read: Tensor = norm(stream)
            return read
    return stream


def post_norm(layer: RoutedLayer, module: Module, update: Tensor) -> Tensor:
    """Apply the norms, dropouts and factor after a module, [B, T, D]."""
    family = layer.family
    for name in family.attn_after if module == "attn" else family.mlp_after:
        after: Any = layer._modules[name]
        update = after(update)
    return update * getattr(layer, family.scale) if family.scale else update


def run_attention(
    layer: RoutedLayer, read: Tensor, arguments: dict[str, Any], half: Any = None
) -> Tensor:
    """Return attention's output [B, T, D]; `half` replaces the module to run only a part of it."""
    attn: Any = layer._modules[layer.family.attn]
    known = layer.attn_arguments
    given = {name: value for name, value in arguments.items() if known is None or name in known}
    if layer.family.adds_residual:
        given["residual"] = read.new_zeros(())
    try:
        output = attn(read, **given) if half is None else _run_half(attn, half, read, given)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _MISFIT):
            raise
        raise ConfigError(
            f"running attention of layer {layer.index}",
            got=f"a cache whose keys do not fit ({str(error).splitlines()[0]})",
            expected="a cache that this model has filled",
        ) from error
    update: Tensor = output[0]
    return update


def _run_half(attn: Any, half: Any, read: Tensor, given: dict[str, Any]) -> Any:
    run = type(attn).forward
    if "_hf_hook" not in attn.__dict__:
        return run(half, read, **given)
    # Offloaded: the module's own parameters, such as sinks, are loaded only by its hook.
    attn._hf_hook.pre_forward(attn)
    try:
        return run(half, read, **given)
    finally:
        attn._hf_hook.post_forward(attn, None)


def run_mlp(layer: RoutedLayer, read: Tensor) -> Tensor:
    """Return the MLP's output [B, T, D]; mixtures of experts may also return their scores."""
    mlp: Any = layer._modules[layer.family.mlp]
    return first_of(mlp(read, read.new_zeros(())) if layer.family.adds_residual else mlp(read))


def first_of(output: Any) -> Tensor:
    """The tensor of a module's or layer's output, which some families return in a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def run_module(
    layer: RoutedLayer, module: Module, entering: Tensor, arguments: dict[str, Any]
) -> Tensor:
    """Run a module with its norms; return its update [B, T, D] of the stream."""
    read = pre_norm(layer, module, entering)
    update = run_mlp(layer, read) if module == "mlp" else run_attention(layer, read, arguments)
    return post_norm(layer, module, update)


def is_causal(attention: Any, arguments: dict[str, Any]) -> bool:
    """Whether an attention module without a mask is causal, as transformers determines it."""
    given = arguments.get("is_causal")
    return bool(getattr(attention, "is_causal", True) if given is None else given)


def attention_arguments(attention: Any) -> frozenset[str] | None:
    """The arguments that an attention module takes by name; None where it takes any."""
    parameters = inspect.signature(type(attention).forward).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return None
    return frozenset(parameters)
