"""Packing: taking the rows of kept tokens out of what a layer computes with, and putting them back.

Shapes: B batch, T query tokens, S cached tokens, D hidden, N packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from skipgpt.errors import ConfigError


def pack_columns(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of kept tokens in keep [B, T], packed to the left of each row.

    Returns:
        Positions [B, N] with N the most that a row keeps, and which of them are in use, [B, N];
        a row that keeps fewer is filled up with other positions, in order. Where some row keeps
        all, nothing moves: every row holds all its positions where they were.
    """
    if len(keep) == 1:
        kept = keep[0].nonzero().T
        return kept, torch.ones_like(kept, dtype=torch.bool)
    counts = keep.sum(1)
    most = int(counts.max())
    if most == keep.shape[1]:
        return all_columns(keep), keep
    order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :most]
    filled = torch.arange(most, device=keep.device) < counts[:, None]
    return order, filled


def all_columns(keep: Tensor) -> Tensor:
    """Every position of every row, [B, T]."""
    return torch.arange(keep.shape[1], device=keep.device).expand(keep.shape)


def take(source: Tensor, columns: Tensor) -> Tensor:
    """The rows [B, N, D] at `columns` [B, N] of source [B or 1, T, D]."""
    if len(columns) == 1:
        return source.index_select(1, columns[0])
    source = source.expand(len(columns), -1, -1)
    return source.gather(1, columns.unsqueeze(-1).expand(-1, -1, source.shape[-1]))


def take_arguments(
    arguments: dict[str, Any], take_rows: Callable[[Tensor], Tensor], mask: Any
) -> dict[str, Any]:
    """Attention's arguments for some queries; `take_rows` takes their rows of [B or 1, T, D]."""
    packed = arguments | {"attention_mask": mask}
    if (rotary := arguments.get("position_embeddings")) is not None:
        packed["position_embeddings"] = tuple(map(take_rows, rotary))
    if (positions := arguments.get("position_ids")) is not None:
        packed["position_ids"] = take_rows(positions.unsqueeze(-1)).squeeze(-1)
    return packed


def take_mask(mask: Any, columns: Tensor, keys: int) -> Any:
    """The mask of packed queries of causal attention, from that of all T.

    Args:
        mask: [B or 1, heads, T, S], a flex attention mask of that shape, or None: plainly causal.
        columns: [B, N], the places of the queries.
        keys: S.

    Returns:
        [B, heads, N, S].

    Raises:
        ConfigError: the mask has no rows to take, as in flash attention.
    """
    if mask is None:
        # Transformers leaves a mask out only where the first query aligns with the first key: with
        # no cache, or an empty one, whose unused end (StaticCache) lies behind all queries.
        return (torch.arange(keys, device=columns.device) <= columns.unsqueeze(-1)).unsqueeze(1)
    if isinstance(mask, BlockMask):
        return take_blocks(mask, columns, keys)
    mask = check_mask(mask).expand(len(columns), -1, -1, -1)
    rows = columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    return torch.gather(mask, 2, rows)


def take_blocks(
    mask: BlockMask,
    columns: Tensor,
    keys: int,
    key_columns: Tensor | None = None,
    visible: Tensor | None = None,
) -> BlockMask:
    """The flex attention mask of packed queries at `columns` [B, N], from that of all T.

    Where keys are packed, too, `key_columns` [B, K] are their places; else all S are there.
    `visible` [B, N, K] is a further condition for a query to see a key.
    """

    def packed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        place = k if key_columns is None else key_columns[b, k]
        seen: Tensor = mask.mask_mod(b, h, columns[b, q], place)
        return seen if visible is None else seen & visible[b, q, k]

    heads = None if mask.shape[1] == 1 else mask.shape[1]
    shape = (len(columns), heads, columns.shape[1], keys)
    return create_block_mask(packed, *shape, device=columns.device, BLOCK_SIZE=mask.BLOCK_SIZE)


def check_mask(mask: Any) -> Tensor:
    """Return the mask; raise a ConfigError if it has no rows to take, as in flash attention."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ConfigError(
            "running attention for kept tokens only",
            got=f"an attention mask of type {type(mask).__name__}",
            expected="the masks of attn_implementation eager, sdpa or flex_attention",
            todo='load the model with attn_implementation="sdpa", or use execution "gated"',
        )
    return mask
