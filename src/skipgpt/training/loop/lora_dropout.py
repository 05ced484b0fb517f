"""LoRA dropout with masks keyed by token, not by batch.

PEFT's dropout draws one mask per batch, so micro-batches, processes and kept tokens change the
masks. Here the mask of a row of text is drawn by the row's own generator for all its tokens, and
packed tokens take their own rows of it. Shapes: B batch, T query tokens, D hidden, N packed tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.model.state import Given, RoutingState, routing_state


class RowDropout(nn.Dropout):
    """Dropout with masks drawn by `state.noise`; without noise it is torch's own."""

    def __init__(self, share: float, state: RoutingState, name: str) -> None:
        super().__init__(share)
        self.name = name
        # Not as an attribute of its own: PEFT and torch copy modules, and all copies share it.
        self._state = [state]

    def forward(self, read: Tensor) -> Tensor:
        """Zero some elements of [B, T, D] or [1, N, D] and scale up the others."""
        noise, given = self._state[0].noise, self._state[0].given
        if noise is None or not self.training:
            dropped: Tensor = super().forward(read)
            return dropped
        length = read.shape[1] if given is None else given.length
        shape, device = (len(noise.rows), length, read.shape[-1]), read.device
        mask = torch.empty(shape, dtype=torch.bool, device=device)
        for row, generator in zip(mask, noise.generators(self.name, device), strict=True):
            row.bernoulli_(1 - self.p, generator=generator)
        if given is not None:
            mask = mask.flatten(0, 1)[_places(given)]
        return read * mask.view(read.shape) * (1 / (1 - self.p))


def _places(given: Given) -> Tensor:
    """Return the indices of the given tokens among all B * T."""
    if given.tokens.ndim == 1:
        return given.tokens
    first = torch.arange(len(given.tokens), device=given.tokens.device) * given.length
    return given.tokens + first[:, None]


def key_dropout(model: Any) -> None:
    """Replace the dropout of every LoRA layer of a routed model by `RowDropout`, in place."""
    state = routing_state(model)
    for name, module in model.named_modules():
        dropouts = getattr(module, "lora_dropout", None)
        if not isinstance(dropouts, nn.ModuleDict):
            continue
        for adapter, dropout in dropouts.items():
            if type(dropout) is nn.Dropout:
                dropouts[adapter] = RowDropout(dropout.p, state, name)
