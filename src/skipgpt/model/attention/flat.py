"""Attention of the kept queries of all sequences, concatenated; no mask [N, S] is built.

Prefill, plainly causal, in blocks of queries:

    position  0 1 2 3 4 5 6 7 8 9
    queries     ●   ● ●     ●   ●        kept tokens of one sequence, in order
    blocks     └──────┘  └──────┘
    keys       0 ─────4  0 ──────── 9    as many as the last query of a block sees

Where a mask would be plainly causal, transformers leaves it out, and the kernel skips the keys
above the diagonal. Packed queries have no such diagonal; with a mask [N, S] half of the work is
wasted. In blocks only one corner per block is. No sequence is filled up to the length of another.

A decode step, one token per sequence, over views of the keys:

    sequence   0 1 2 3 4 5 6 7
    token        ●   ● ● ●   ●      kept tokens
    runs         1   3─────5  7     each reads keys[run], a view

Indexing sequences out of a cache copies their keys, which takes longer than attending in every
sequence; a run of adjacent sequences is a slice.

Shapes: B batch, T tokens per sequence, N packed queries of all sequences, S keys per sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from skipgpt.model import modules, packing
from skipgpt.model.attention import custom
from skipgpt.model.attention.custom import PackedQueries
from skipgpt.model.routed import RoutedLayer

BLOCK = 64
"""Queries per block: small wastes less, large calls less; best on a CPU at 512 and 2,048 keys."""


@dataclass(frozen=True, eq=False)
class CausalQueries(PackedQueries):
    """Queries each of which sees its sequence up to its own position.

    Attributes:
        columns: [N], the positions, sequence by sequence.
        counts: how many of them each sequence has.
    """

    columns: Tensor
    counts: list[int]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        """Attention [1, N, H, size] of queries [1, H, N, size] to keys [B, heads, S, size]."""
        outputs = [
            _attention(
                query[:, :, chosen],
                key[sequence : sequence + 1, :, : mask.shape[1]],
                value[sequence : sequence + 1, :, : mask.shape[1]],
                mask,
                **given,
            )
            for chosen, sequence, mask in self.blocks()
        ]
        return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()

    def blocks(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield per block its queries, its sequence, and the mask [queries, keys]."""
        start = 0
        for sequence, columns in enumerate(torch.split(self.columns, self.counts)):
            for part in torch.split(columns, BLOCK) if len(columns) else ():
                keys = torch.arange(int(part[-1]) + 1, device=part.device)
                yield slice(start, start + len(part)), sequence, keys <= part[:, None]
                start += len(part)


@dataclass(frozen=True, eq=False)
class RowQueries(PackedQueries):
    """Queries of which the n-th belongs to sequence rows[n].

    Attributes:
        rows: the sequences, in order.
        mask: [B, heads or 1, 1, S], or None where every key is seen.
    """

    rows: list[int]
    mask: Tensor | None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        """Attention [1, N, H, size] of queries [1, H, N, size] to keys [B, heads, S, size]."""
        queries, mask = query[0].transpose(0, 1).unsqueeze(2), self.mask
        outputs = [
            _attention(
                queries[chosen],
                key[rows],
                value[rows],
                None if mask is None else mask[rows],
                **given,
            )
            for chosen, rows in self.runs()
        ]
        return torch.cat(outputs).squeeze(2)[None]

    def runs(self) -> Iterator[tuple[slice, slice]]:
        """Yield a slice of queries and one of their sequences for each run."""
        start = 0
        for end in range(1, len(self.rows) + 1):
            if end == len(self.rows) or self.rows[end] != self.rows[end - 1] + 1:
                yield slice(start, end), slice(self.rows[start], self.rows[end - 1] + 1)
                start = end


def can_use(layer: RoutedLayer, tokens: int, arguments: dict[str, Any]) -> bool:
    """Whether attention of so many tokens per sequence can run so, in a custom function.

    Several tokens have to be plainly causal; one may have any mask [B, heads, 1, S], or none.
    """
    mask = arguments["attention_mask"]
    if tokens == 1:
        suits = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
    else:
        attention = getattr(layer, layer.family.attn)
        suits = mask is None and modules.is_causal(attention, arguments)
    return suits and custom.can_use(layer)


def take_arguments(
    arguments: dict[str, Any], rows: Tensor, batch: int, tokens: int
) -> dict[str, Any]:
    """Attention's arguments for the tokens at rows [N] of `batch` * `tokens`."""
    columns, mask = rows % tokens, arguments["attention_mask"]
    queries: PackedQueries
    if tokens == 1:
        mask = None if mask is None else mask.expand(batch, -1, -1, -1)
        queries = RowQueries(rows.tolist(), mask)
    else:
        counts = torch.bincount(rows // tokens, minlength=batch).tolist()
        queries = CausalQueries(columns, counts)

    def take(each: Tensor) -> Tensor:
        if len(each) == 1:
            return each.index_select(1, columns)
        return each.flatten(0, 1).index_select(0, rows)[None]

    return packing.take_arguments(arguments, take, queries)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    """Attention of queries [N, H, T, size] to keys [N, heads, S, size], by torch's function."""
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
