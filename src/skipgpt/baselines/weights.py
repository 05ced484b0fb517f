"""The base weights of a layer, for methods that compute with them."""

from __future__ import annotations

from torch import nn

from skipgpt.errors import UnsupportedModelError
from skipgpt.model.families.parameter_names import kind_of
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.surgery import routed_layers


def base_weights(layer: RoutedLayer) -> dict[str, nn.Parameter]:
    """Return a layer's parameters by name, without those of routing and LoRA."""
    return {name: p for name, p in layer.named_parameters() if kind_of(name) == "base"}


def refuse_quantized(model: nn.Module, doing: str) -> None:
    """Raise UnsupportedModelError if the base is quantised.

    Its weights can then be neither added nor differentiated.
    """
    packed = any(
        not parameter.is_floating_point()
        for layer in routed_layers(model)
        for parameter in base_weights(layer).values()
    )
    if packed or getattr(model, "is_quantized", False):
        raise UnsupportedModelError(
            doing,
            got="a quantised base model",
            expected="weights as floating-point numbers",
            todo="give a base whose weights are not quantised, or choose another method",
        )
