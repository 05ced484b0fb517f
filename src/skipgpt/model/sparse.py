"""Execution `sparse`: only kept tokens run. The fast twin of `gated`.

Keys and values are computed and cached for every token, as the method has it, so that any later
token may attend to any earlier one and every cache of transformers works unchanged. Queries,
scores, output projection and MLP are computed for kept tokens only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skipgpt.errors import ConfigError
from skipgpt.model import parts
from skipgpt.model.halves import kept_queries, keys_and_values
from skipgpt.routing.decision import ModuleDecision

if TYPE_CHECKING:
    from skipgpt.model.layer import RoutedLayer


def mlp(layer: RoutedLayer, stream: Tensor, entering: Tensor, decision: ModuleDecision) -> Tensor:
    """Stream [B, T, D] plus the MLP of the kept tokens of `entering` [B, T, D]."""
    rows = decision.keep.flatten().nonzero().squeeze(-1)
    if len(rows) == 0:
        return stream
    flat = entering.flatten(0, 1)
    packed = flat if len(rows) == len(flat) else flat.index_select(0, rows)
    update = parts.feed_forward(layer, parts.normed(layer, "mlp", packed[None]))
    return _add_rows(stream, parts.added(layer, "mlp", update)[0], rows)


def attention(
    layer: RoutedLayer,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor:
    """Stream [B, T, D] plus attention of the kept tokens of `entering`; K/V for all."""
    read = parts.normed(layer, "attn", entering)
    columns, filled = _pack_columns(decision.keep)
    if columns.shape[1] == stream.shape[1]:
        # Nothing to pack: masks keep the short form that the fastest kernels want.
        update = parts.attend(layer, read, arguments)
    else:
        found = keys_and_values(layer, read, arguments)
        if columns.shape[1] == 0:
            return stream
        packed = _take_arguments(arguments, columns, found.keys.shape[2])
        take = lambda rows: _take(rows, columns)  # noqa: E731
        update = kept_queries(layer, take(read), packed, found, take)
    update = parts.added(layer, "attn", update)
    if len(stream) == 1:
        return _add_rows(stream, update[0], columns[0])
    first_row = torch.arange(len(stream), device=stream.device)[:, None] * stream.shape[1]
    return _add_rows(stream, update[filled], (columns + first_row)[filled])


def _add_rows(stream: Tensor, update: Tensor, rows: Tensor) -> Tensor:
    """Stream [B, T, D] with update [N, D] added to rows [N] of its tokens, in order."""
    flat = stream.flatten(0, 1)
    if len(rows) == len(flat):
        return stream + update.view_as(stream)
    # Not in place: the stream before this module may have been recorded.
    return flat.index_add(0, rows, update.to(flat.dtype)).view_as(stream)


def _pack_columns(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of kept tokens, packed to the left of each row.

    Args:
        keep: [B, T] bool.

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
        return torch.arange(most, device=keep.device).expand(keep.shape), keep
    order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :most]
    filled = torch.arange(most, device=keep.device) < counts[:, None]
    return order, filled


def _take(source: Tensor, columns: Tensor) -> Tensor:
    """Rows [B, N, D] of source [B or 1, T, D]."""
    if len(columns) == 1:
        return source.index_select(1, columns[0])
    source = source.expand(len(columns), -1, -1)
    return source.gather(1, columns.unsqueeze(-1).expand(-1, -1, source.shape[-1]))


def _take_arguments(arguments: dict[str, Any], columns: Tensor, keys: int) -> dict[str, Any]:
    """Attention's arguments for the queries at columns [B, N]."""
    mask = arguments["attention_mask"]
    packed = arguments | {"attention_mask": _take_mask(mask, columns, keys)}
    if (rotary := arguments.get("position_embeddings")) is not None:
        packed["position_embeddings"] = tuple(_take(each, columns) for each in rotary)
    if (positions := arguments.get("position_ids")) is not None:
        packed["position_ids"] = _take(positions.unsqueeze(-1), columns).squeeze(-1)
    return packed


def _take_mask(mask: Any, columns: Tensor, keys: int) -> Tensor:
    """The mask [B, heads, N, S] of packed queries, from [B or 1, heads, T, S] or plain causal.

    Raises:
        ConfigError: the mask is of a kind that has no rows to take, as of flash attention.
    """
    if mask is None:
        # Transformers leaves a mask out only where the first query meets the first key: with no
        # cache, or an empty one, whose unused end (StaticCache) lies behind all queries.
        return (torch.arange(keys, device=columns.device) <= columns.unsqueeze(-1)).unsqueeze(1)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ConfigError(
            "running attention for kept tokens only",
            got=f"an attention mask of type {type(mask).__name__}",
            expected="the masks of attn_implementation eager or sdpa",
            todo='load the model with attn_implementation="sdpa", or use execution "gated"',
        )
    mask = mask.expand(len(columns), -1, -1, -1)
    return mask.gather(2, columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
