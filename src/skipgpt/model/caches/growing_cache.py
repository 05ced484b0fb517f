"""A cache layer that preallocates space for further tokens.

`DynamicLayer` copies all keys and values of a layer for each new token, whether or not the token
skips attention: at 2,048 tokens this takes as long as a module of a small model. With space at the
end only the new ones are written; what is read, cropped or reordered is a view as before.

Shapes: B batch, S cached tokens, n new tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

STEP = 64
"""Minimum spare space in tokens; an eighth of the cached tokens if that is more."""


class GrowingBuffer:
    """One tensor with spare space after its tokens.

    Attributes:
        whole: [B, heads, room, size]; None before the first token is appended.
    """

    def __init__(self) -> None:
        self.whole: Tensor | None = None
        self._held: Tensor | None = None

    def append(self, held: Tensor, new: Tensor) -> Tensor:
        """Append `new` [B, heads, n, size] to `held` [B, heads, S, size].

        In place if `held` is what this returned last and there is room.
        """
        start, count = held.shape[2], new.shape[2]
        whole = self.whole
        if whole is None or not self._has_room(whole, held, count):
            room = start + count + max(STEP, (start + count) // 8)
            whole = held.new_empty(*held.shape[:2], room, held.shape[3])
            whole.narrow(2, 0, start).copy_(held)
            self.whole = whole
        whole.narrow(2, start, count).copy_(new)
        self._held = whole.narrow(2, 0, start + count)
        return self._held

    def _has_room(self, whole: Tensor, held: Tensor, count: int) -> bool:
        return (
            # Else it was cropped, reordered or moved since, and the buffer may be in use elsewhere.
            held is self._held
            and held.shape[2] + count <= whole.shape[2]
            and (torch.is_inference_mode_enabled() or not whole.is_inference())
        )


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """A `DynamicLayer` that grows in preallocated buffers."""

    keys: Tensor
    values: Tensor
    rooms: tuple[GrowingBuffer, GrowingBuffer]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, n, size]; returns all of them."""
        # A tensor that autograd has recorded must not be written to, and a compiled graph keeps no
        # buffers. Shapes that do not fit are left to torch.cat, which raises.
        compiling = torch.compiler.is_compiling()
        if compiling or torch.is_grad_enabled() or not _fits(self, key_states):
            held: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return held
        keys, values = self.rooms
        self.keys = keys.append(self.keys, key_states)
        self.values = values.append(self.values, value_states)
        return self.keys, self.values


def _fits(layer: DynamicLayer, new: Tensor) -> bool:
    held: Tensor | None = layer.keys
    if held is None or held.ndim < 4 or held.dtype != new.dtype:
        return False
    (batch, heads, tokens, size), given = held.shape, new.shape
    return tokens > 0 and (batch, heads, size) == (given[0], given[1], given[3])


def make_room(cache: Any) -> None:
    """Turn the plain layers of a `DynamicCache` into preallocated ones, in place."""
    if type(cache) is not DynamicCache or cache.offloading:
        return
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = PreallocatedLayer
            layer.rooms = GrowingBuffer(), GrowingBuffer()
