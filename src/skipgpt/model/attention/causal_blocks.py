"""Attention of packed queries without a mask of all keys.

    position  0 1 2 3 4 5 6 7 8 9
    queries     ●   ● ●     ●   ●        kept tokens, in order
    blocks     └──────┘  └──────┘
    keys       0 ─────4  0 ──────── 9    as many as the last query of a block sees

Where a mask would be plainly causal, transformers leaves it out, and the kernel passes over what
lies behind the diagonal. Packed queries have no such diagonal; with a mask [N, S] in its place half
of the work is for nothing. In blocks it comes back, all but the corner of each block.

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
"""Queries a block: small wastes less, large calls less. Best on a CPU at 512 and 2,048 keys."""


@dataclass(frozen=True, eq=False)
class CausalQueries(PackedQueries):
    """In the place of a mask: each query sees the keys up to its own position.

    Attributes:
        columns: [B, N], the positions.
    """

    attention = "skipgpt_causal_blocks"
    columns: Tensor

    def blocks(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Which queries, how many keys they need, and their mask [B, 1, queries, keys]."""
        parts = torch.split(self.columns, BLOCK, dim=1)
        ends = torch.stack([part.max() for part in parts]).add(1).tolist()
        start = 0
        for part, end in zip(parts, ends, strict=True):
            keys = torch.arange(end, device=part.device)
            yield slice(start, start + part.shape[1]), end, (keys <= part[..., None])[:, None]
            start += part.shape[1]


def can_use(layer: RoutedLayer, mask: Any) -> bool:
    """Whether causal attention of a layer can run in blocks: no mask, and a function of ours."""
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
