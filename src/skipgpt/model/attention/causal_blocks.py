"""Causal attention of packed queries in blocks, without a mask [N, S].

    position  0 1 2 3 4 5 6 7 8 9
    queries     ●   ● ●     ●   ●        kept tokens, in order
    blocks     └──────┘  └──────┘
    keys       0 ─────4  0 ──────── 9    as many as the last query of a block sees

Where a mask would be plainly causal, transformers leaves it out, and the kernel skips the keys
above the diagonal. Packed queries have no such diagonal; with a mask [N, S] half of the work is
wasted. In blocks only one corner per block is.

Shapes: B batch, N packed queries, S keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from skipgpt.model.attention import custom
from skipgpt.model.attention.custom import PackedQueries
from skipgpt.model.routed import RoutedLayer

BLOCK = 64
"""Queries per block: small wastes less, large calls less; best on a CPU at 512 and 2,048 keys."""


@dataclass(frozen=True, eq=False)
class CausalQueries(PackedQueries):
    """Passed as the attention mask: each query sees the keys up to its own position.

    Attributes:
        columns: [B, N], the positions.
    """

    attention = "skipgpt_causal_blocks"
    columns: Tensor

    def blocks(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield per block its queries, the number of keys, and the mask [B, 1, queries, keys]."""
        parts = torch.split(self.columns, BLOCK, dim=1)
        ends = torch.stack([part.max() for part in parts]).add(1).tolist()
        start = 0
        for part, end in zip(parts, ends, strict=True):
            keys = torch.arange(end, device=part.device)
            yield slice(start, start + part.shape[1]), end, (keys <= part[..., None])[:, None]
            start += part.shape[1]


def can_use(layer: RoutedLayer, mask: Any) -> bool:
    """Whether a layer's causal attention can run in blocks: no mask, and a custom function."""
    return mask is None and custom.can_use(layer)


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
    """Attention [B, N, H, size] of queries [B, H, N, size] to keys [B, heads, S, size]."""
    outputs = [
        scaled_dot_product_attention(
            query[:, :, chosen],
            key[:, :, :end],
            value[:, :, :end],
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for chosen, end, mask in attention_mask.blocks()
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None
