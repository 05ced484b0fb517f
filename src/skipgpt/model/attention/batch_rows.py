"""Decode attention for some sequences of a batch, each over a view of its own keys.

    sequence   0 1 2 3 4 5 6 7
    token        ●   ● ● ●   ●      kept tokens
    runs         1   3─────5  7     each reads keys[run], a view

Indexing sequences out of a cache copies their keys, which takes longer than attending in every
sequence; a run of adjacent sequences is a slice. Shapes: B batch, N kept tokens, S keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from skipgpt.model import packing
from skipgpt.model.attention import custom
from skipgpt.model.attention.custom import PackedQueries
from skipgpt.model.routed import RoutedLayer


@dataclass(frozen=True, eq=False)
class RowQueries(PackedQueries):
    """Passed as the attention mask: query n belongs to sequence rows[n].

    Attributes:
        rows: the sequences, in order.
        mask: [B, heads or 1, 1, S], or None where every key is seen.
    """

    attention = "skipgpt_batch_rows"
    rows: list[int]
    mask: Tensor | None

    def runs(self) -> Iterator[tuple[slice, slice]]:
        """Yield a slice of queries and one of their sequences for each run."""
        start = 0
        for end in range(1, len(self.rows) + 1):
            if end == len(self.rows) or self.rows[end] != self.rows[end - 1] + 1:
                yield slice(start, end), slice(self.rows[start], self.rows[end - 1] + 1)
                start = end


def can_use(layer: RoutedLayer, tokens: int, mask: Any) -> bool:
    """Whether attention can run per sequence with so many new tokens per sequence."""
    sliced = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
    return tokens == 1 and sliced and custom.can_use(layer)


def take(source: Tensor, rows: Tensor) -> Tensor:
    """The tokens [1, N, D] of the sequences `rows`, taken from [B, 1, D]."""
    return source.index_select(0, rows).transpose(0, 1)


def take_arguments(arguments: dict[str, Any], rows: Tensor, batch: int) -> dict[str, Any]:
    """Attention's arguments for the tokens of some of `batch` sequences."""
    mask = arguments["attention_mask"]
    mask = None if mask is None else mask.expand(batch, -1, -1, -1)
    return packing.take_arguments(
        arguments,
        lambda each: take(each.expand(batch, -1, -1), rows),
        RowQueries(rows.tolist(), mask),
    )


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: RowQueries,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention [1, N, H, size] of queries [1, H, N, size] to keys [B, heads, S, size]."""
    queries = query[0].transpose(0, 1).unsqueeze(2)
    outputs = [
        scaled_dot_product_attention(
            queries[chosen],
            key[rows],
            value[rows],
            attn_mask=None if attention_mask.mask is None else attention_mask.mask[rows],
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for chosen, rows in attention_mask.runs()
    ]
    return torch.cat(outputs).squeeze(2)[None], None
