"""Merges layers' weights in place, and undoes it.

The weight update of LaCo (arXiv 2402.11187); `laco.py` decides when it is applied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skipgpt.baselines.weights import base_weights
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.surgery import routed_layers


class Merges:
    """The merges of a routed model, by layer index; only attention and MLP weights change."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = routed_layers(model)
        self._originals: dict[int, dict[str, Tensor]] = {}

    def fit(self, layers: Sequence[int]) -> bool:
        """Whether these layers have weights of the same names and shapes."""
        shapes = [{name: p.shape for name, p in self._weights(n).items()} for n in layers]
        return all(each == shapes[0] for each in shapes)

    @torch.no_grad()
    def merge(self, base: int, others: Sequence[int]) -> None:
        """Add the weight difference of each other layer to the base layer's weights."""
        weights = self._weights(base)
        current = {name: weight.detach().clone() for name, weight in weights.items()}
        self._originals.setdefault(base, current)
        for name, weight in weights.items():
            own = weight.float()
            merged = own.clone()
            for other in others:
                merged += self._weights(other)[name].to(own) - own
            weight.copy_(merged)

    @torch.no_grad()
    def undo(self, base: int) -> None:
        """Restore a layer's weights from before its merges, if it has any."""
        weights = self._weights(base)
        for name, original in self._originals.pop(base, {}).items():
            weights[name].copy_(original)

    def undo_all(self) -> None:
        """Restore the weights of all layers."""
        for base in list(self._originals):
            self.undo(base)

    def _weights(self, index: int) -> dict[str, nn.Parameter]:
        layer: RoutedLayer = self._layers[index]
        modules = (f"{layer.family.attn}.", f"{layer.family.mlp}.")
        found = base_weights(layer).items()
        return {name: weight for name, weight in found if name.startswith(modules)}
