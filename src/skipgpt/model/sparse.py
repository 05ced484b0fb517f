"""Execution `sparse`: only kept tokens run. The fast twin of `gated`.

Keys and values are computed and cached for every token, as the method has it, so that any later
token may attend to any earlier one and every cache of transformers works unchanged. Queries,
scores, output projection and MLP are computed for kept tokens only.
"""

from __future__ import annotations

import sys
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skipgpt.errors import ConfigError
from skipgpt.routing.decision import ModuleDecision

if TYPE_CHECKING:
    from skipgpt.model.layer import LayerCall, RoutedLayer


def mlp(layer: RoutedLayer, hidden: Tensor, decision: ModuleDecision) -> Tensor:
    """Residual stream [B, T, D] after the MLP of the kept tokens."""
    rows = decision.keep.flatten().nonzero().squeeze(-1)
    if len(rows) == 0:
        return hidden
    flat = hidden.flatten(0, 1)
    packed = flat if len(rows) == len(flat) else flat.index_select(0, rows)
    update = layer.mlp(layer.part(layer.family.mlp_norm)(packed[None]))
    update = layer.part(layer.family.mlp_post_norm)(update)[0]
    return _add_rows(hidden, update, rows)


def attention(
    layer: RoutedLayer, hidden: Tensor, decision: ModuleDecision, call: LayerCall
) -> Tensor:
    """Residual stream [B, T, D] after the attention of the kept tokens; K/V for all."""
    attn, family = layer.self_attn, layer.family
    normed = layer.part(family.attn_norm)(hidden)
    cosine, sine = call.position_embeddings
    rotate = family.load("apply_rotary_pos_emb")

    heads = (*hidden.shape[:2], -1, attn.head_dim)
    keys = attn.k_proj(normed).view(heads)
    keys = (attn.k_norm(keys) if family.qk_norm else keys).transpose(1, 2)
    values = attn.v_proj(normed).view(heads).transpose(1, 2)
    # The rotary function takes queries and keys; an empty tensor stands in for the other one.
    _, keys = rotate(keys[:, :0], keys, cosine, sine)
    if call.past_key_values is not None:
        keys, values = call.past_key_values.update(keys, values, attn.layer_idx)

    columns, filled = _pack_columns(decision.keep)
    if columns.shape[1] == 0:
        return hidden
    # With nothing to pack, masks may keep the short form that the fastest kernels want.
    whole = bool(columns.shape[1] == hidden.shape[1])
    packed = normed if whole else _take(normed, columns)
    queries = attn.q_proj(packed).view(*packed.shape[:2], -1, attn.head_dim)
    queries = (attn.q_norm(queries) if family.qk_norm else queries).transpose(1, 2)
    if not whole:
        cosine, sine = (_take(each.expand(len(hidden), -1, -1), columns) for each in (cosine, sine))
    queries, _ = rotate(queries, queries[:, :0], cosine, sine)
    mask = call.attention_mask
    if not whole:
        _refuse_unpackable(attn.config._attn_implementation)
        mask = _take_mask(mask, columns, keys.shape[2])

    mixed, _ = _attention_function(attn)(
        attn,
        queries,
        keys,
        values,
        mask,
        dropout=attn.attention_dropout if attn.training else 0.0,
        scaling=attn.scaling,
        **{name: attrgetter(path)(attn) for name, path in family.attention_extras},
        **call.extras,
    )
    update = attn.o_proj(mixed.reshape(*packed.shape[:2], -1))
    update = layer.part(family.attn_post_norm)(update)
    if len(hidden) == 1:
        return _add_rows(hidden, update[0], columns[0])
    first_row = torch.arange(len(hidden), device=hidden.device)[:, None] * hidden.shape[1]
    return _add_rows(hidden, update[filled], (columns + first_row)[filled])


def _add_rows(hidden: Tensor, update: Tensor, rows: Tensor) -> Tensor:
    """Hidden [B, T, D] with update [N, D] added to rows [N] of its tokens, in order."""
    flat = hidden.flatten(0, 1)
    if len(rows) == len(flat):
        return hidden + update.view_as(hidden)
    # Not in place: the stream before this module may have been recorded.
    return flat.index_add(0, rows, update.to(flat.dtype)).view_as(hidden)


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
    """Rows [B, N, D] of source [B, T, D]."""
    if len(source) == 1:
        return source.index_select(1, columns[0])
    return source.gather(1, columns.unsqueeze(-1).expand(-1, -1, source.shape[-1]))


def _take_mask(mask: Tensor | None, columns: Tensor, keys: int) -> Tensor:
    """The mask [B, 1, N, S] of packed queries, from [B or 1, 1, T, S] or plain causal."""
    if mask is None:
        # Transformers leaves a mask out only where the first query meets the first key: with no
        # cache, or an empty one, whose unused end (StaticCache) lies behind all queries.
        return (torch.arange(keys, device=columns.device) <= columns.unsqueeze(-1)).unsqueeze(1)
    mask = mask.expand(len(columns), -1, -1, -1)
    return mask.gather(2, columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def _refuse_unpackable(implementation: str) -> None:
    """Raise where masks of packed queries have no form that the attention function reads.

    Raises:
        ConfigError: neither eager nor sdpa.
    """
    if implementation not in ("eager", "sdpa"):
        raise ConfigError(
            "running attention for kept tokens only",
            got=f"attn_implementation {implementation!r}",
            expected="eager or sdpa",
            todo='load the model with attn_implementation="sdpa", or use execution "gated"',
        )


def _attention_function(attn: Any) -> Any:
    """The function that the family's own attention would call."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = sys.modules[type(attn).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(attn.config._attn_implementation, eager)
