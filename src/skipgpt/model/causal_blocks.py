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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from skipgpt.model.family import has

if TYPE_CHECKING:
    from skipgpt.model.layer import RoutedLayer

NAME = "skipgpt_causal_blocks"
BLOCK = 64
"""Queries a block: small wastes less, large calls less. Best on a CPU at 512 and 2,048 keys."""


@dataclass(frozen=True, eq=False)
class CausalQueries:
    """In the place of a mask: each query sees the keys up to its own position.

    Attributes:
        columns: [B, N], the positions.
    """

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


class BlockwiseConfig:
    """The config of an attention module, except that it asks for attention in blocks."""

    _attn_implementation = NAME

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def suits(layer: RoutedLayer, mask: Any) -> bool:
    """Whether attention of a layer can run in blocks: with sdpa, plainly causal, on a CPU.

    On other devices the number of keys of each block would have to be waited for.
    """
    attn = getattr(layer, layer.family.attn)
    if mask is not None or not has(attn, "config"):
        return False
    asks = "ALL_ATTENTION_FUNCTIONS" in type(attn).forward.__code__.co_names
    weight: Tensor = next(attn.parameters())
    return asks and weight.device.type == "cpu" and attn.config._attn_implementation == "sdpa"


def register() -> None:
    """Make the name known to transformers; again and again does no harm."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


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
