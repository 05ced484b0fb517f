"""Causal attention of packed queries in blocks, without a mask [N, S].

    position  0 1 2 3 4 5 6 7 8 9
    queries     ●   ● ●     ●   ●        kept tokens of one sequence, in order
    blocks     └──────┘  └──────┘
    keys       0 ─────4  0 ──────── 9    as many as the last query of a block sees

Where a mask would be plainly causal, transformers leaves it out, and the kernel skips the keys
above the diagonal. Packed queries have no such diagonal; with a mask [N, S] half of the work is
wasted. In blocks only one corner per block is. Sequences that keep different numbers of tokens lie
one behind the other, so that none is filled up to the length of another.

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
    """Passed as the attention mask: each query sees its sequence up to its own position.

    Attributes:
        columns: [N], the positions, sequence by sequence.
        counts: how many of them each sequence has.
    """

    attention = "skipgpt_causal_blocks"
    columns: Tensor
    counts: list[int]

    def blocks(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield per block its queries, its sequence, and the mask [queries, keys]."""
        start = 0
        for sequence, columns in enumerate(torch.split(self.columns, self.counts)):
            for part in torch.split(columns, BLOCK) if len(columns) else ():
                keys = torch.arange(int(part[-1]) + 1, device=part.device)
                yield slice(start, start + len(part)), sequence, keys <= part[:, None]
                start += len(part)


def can_use(layer: RoutedLayer, tokens: int, arguments: dict[str, Any]) -> bool:
    """Whether attention of so many tokens per sequence is plainly causal, in a custom function.

    One token without a mask sees every key.
    """
    attention = getattr(layer, layer.family.attn)
    plain = arguments["attention_mask"] is None and modules.is_causal(attention, arguments)
    return tokens > 1 and plain and custom.can_use(layer)


def take_arguments(
    arguments: dict[str, Any], rows: Tensor, batch: int, tokens: int
) -> dict[str, Any]:
    """Attention's arguments for the tokens at rows [N] of `batch` * `tokens`."""
    columns, counts = rows % tokens, torch.bincount(rows // tokens, minlength=batch).tolist()

    def take(each: Tensor) -> Tensor:
        if len(each) == 1:
            return each.index_select(1, columns)
        return each.flatten(0, 1).index_select(0, rows)[None]

    return packing.take_arguments(arguments, take, CausalQueries(columns, counts))


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: CausalQueries,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention [1, N, H, size] of queries [1, H, N, size] to keys [B, heads, S, size]."""
    outputs = [
        scaled_dot_product_attention(
            query[:, :, chosen],
            key[sequence : sequence + 1, :, : mask.shape[1]],
            value[sequence : sequence + 1, :, : mask.shape[1]],
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for chosen, sequence, mask in attention_mask.blocks()
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None
