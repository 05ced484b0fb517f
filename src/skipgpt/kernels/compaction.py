"""Where kept tokens are, found on the device.

    keep      1 0 1 1 | 0 0 1 0        two sequences of four tokens
    rows      0 2 3 6                  of the flat [B·T]; four are in use
    columns   0 2 3 · | 2 · · ·        each sequence by itself
    counts    3       | 1

Shapes: B batch, T query tokens. The host waits for nothing, and every shape follows from [B, T].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeptRows:
    """Kept tokens of the whole batch.

    Attributes:
        rows: [B·T] int32, their places in order; 0 behind the first `count`.
        count: [1] int32.
    """

    rows: Tensor
    count: Tensor


@dataclass(frozen=True, eq=False)
class KeptQueries(KeptRows):
    """Kept tokens of the whole batch, and of each sequence by itself.

    Attributes:
        columns: [B, T] int32, places within their sequences, in order; 0 behind the first
            `counts` of each.
        counts: [B] int32.
    """

    columns: Tensor
    counts: Tensor


def kept_rows(keep: Tensor) -> KeptRows:
    """Find the kept tokens of a whole batch in keep [B, T].

    Example:
        >>> kept_rows(torch.tensor([[True, False, True]])).count
        tensor([2], dtype=torch.int32)
    """
    flat = keep.flatten()
    ends = flat.cumsum(0, dtype=torch.int32)
    everything = torch.arange(len(flat), dtype=torch.int32, device=keep.device)
    return KeptRows(_packed(everything, flat, ends - 1), ends[-1:])


def kept_queries(keep: Tensor) -> KeptQueries:
    """Find the kept tokens of a whole batch, and of each of its sequences, in keep [B, T]."""
    batch, tokens = keep.shape
    whole, ends = kept_rows(keep), keep.cumsum(1, dtype=torch.int32)
    first = torch.arange(batch, dtype=torch.int32, device=keep.device)[:, None] * tokens
    every = torch.arange(tokens, dtype=torch.int32, device=keep.device).repeat(batch)
    columns = _packed(every, keep.flatten(), (ends - 1 + first).flatten())
    counts = ends[:, -1].contiguous()
    return KeptQueries(whole.rows, whole.count, columns.view(batch, tokens), counts)


def _packed(values: Tensor, keep: Tensor, places: Tensor) -> Tensor:
    """Kept values [M] at their places [M], 0 elsewhere."""
    made = values.new_zeros(len(values) + 1)
    # Tokens that skip are all written to one place behind the end, which is cut off.
    target = torch.where(keep, places, len(values)).long()
    return made.scatter_(0, target, values)[:-1]
