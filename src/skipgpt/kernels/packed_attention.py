"""Attention of packed queries, `attend`: keys after a tile's last query are never loaded.

Each program packs a tile of queries of one head of one sequence and goes through the keys with an
online softmax. Queries are loaded from their places and outputs stored there. Tiles are taken from
the end, since the last ones see the most keys; queries are in order, so the last of a tile sees
furthest.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipgpt.kernels.launch import Limits, as_bytes, limits, on, power_of_two

LOG2_E = 1.4426950408889634


@triton.jit
def attend_kernel(query, key, value, columns, counts, mask, out, offset, scale, T, S, group,
                  query_batch, query_head, query_token, key_batch, key_head, key_token,
                  value_batch, value_head, value_token, mask_batch, mask_token,
                  SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
                  KEYS: tl.constexpr):  # fmt: skip
    """One tile of queries; `scale` contains log2(e), SIZE is that of a head, WIDTH its tile."""
    head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    kept = tl.load(counts + sequence)
    tile = tl.cdiv(kept, QUERIES) - 1 - tl.program_id(0)
    if tile < 0:
        return
    packed = tile * QUERIES + tl.arange(0, QUERIES)
    there = packed < kept
    column = tl.load(columns + sequence * T + packed, mask=there, other=0)
    place = tl.where(there, column + offset, -1)
    width = tl.arange(0, WIDTH)
    inside = width < SIZE
    kept_query = there[:, None] & inside[None, :]
    asked = tl.load(
        query
        + sequence * query_batch
        + head * query_head
        + column.to(tl.int64)[:, None] * query_token
        + width[None, :],
        mask=kept_query,
        other=0.0,
    )
    keys = key + sequence * key_batch + (head // group).to(tl.int64) * key_head
    values = value + sequence * value_batch + (head // group).to(tl.int64) * value_head

    best = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    end = tl.minimum(tl.max(place) + 1, S)
    for start in range(0, end, KEYS):
        token = start + tl.arange(0, KEYS)
        stored = token < end
        left = tl.load(
            keys + token.to(tl.int64)[None, :] * key_token + width[:, None],
            mask=inside[:, None] & stored[None, :],
            other=0.0,
        )
        score = tl.dot(asked, left, input_precision="ieee") * scale
        seen = (token[None, :] <= place[:, None]) & stored[None, :]
        if mask is not None:
            shown = tl.load(
                mask
                + sequence * mask_batch
                + column.to(tl.int64)[:, None] * mask_token
                + token[None, :],
                mask=seen,
                other=0,
            )
            seen = seen & (shown != 0)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        # A query that has seen nothing yet stays at -inf, and -inf minus -inf is no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(best - base)
        share = tl.exp2(score - base[:, None])
        weight = weight * shrink + tl.sum(share, 1)
        right = tl.load(
            values + token.to(tl.int64)[:, None] * value_token + width[None, :],
            mask=stored[:, None] & inside[None, :],
            other=0.0,
        )
        total = tl.dot(
            share.to(right.dtype), right, total * shrink[:, None], input_precision="ieee"
        )
        best = higher

    total = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    heads = tl.num_programs(1)
    place_out = ((sequence * T + column.to(tl.int64)) * heads + head)[:, None] * SIZE
    tl.store(out + place_out + width[None, :], total.to(out.dtype.element_ty), mask=kept_query)


def tiles(tokens: int, size: int, dtype: torch.dtype, limit: Limits) -> dict[str, int]:
    """Tiles for heads of this size, and sequences of at most so many queries."""
    width = power_of_two(size)
    single = dtype == torch.float32  # no tensor cores at full precision, and twice the bytes
    queries = power_of_two(tokens, largest=32 if single else 64 if width > 128 else 128)
    # Before Hopper scores share the registers with the accumulator.
    keys = 32 if single or width > (128 if limit.has_warpgroup_mma else 64) else 64
    each, held = 2 * keys * width * dtype.itemsize, queries * width * dtype.itemsize
    return {
        "WIDTH": width,
        "QUERIES": queries,
        "KEYS": keys,
        "num_warps": 8 if queries * width >= 128 * 64 else 4,
        "num_stages": limit.stages(each, held, most=3),
    }


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    offset: int,
    scaling: float,
) -> Tensor:
    """Causal attention [B, T, H, size] of some queries to the keys of all tokens.

    The query at place p sees the first p + 1 + `offset` keys. Queries that do not run are
    arbitrary; those that see no key give 0.

    Args:
        query: [B, H, T, size].
        key: [B, key heads, S, size].
        value: as key.
        columns: [B, T] int32, which queries run, packed and in order.
        counts: [B] int32, how many.
        mask: [B or 1, 1, T, S] bool, a further condition to see a key; or None.
        offset: of the first query among the keys.
        scaling: of the scores.
    """
    batch, heads, tokens, size = query.shape
    query, key, value = dense_heads(query), dense_heads(key), dense_heads(value)
    out = query.new_empty(batch, tokens, heads, size)
    chosen = tiles(tokens, size, query.dtype, limits(query.device))
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    with on(query):
        attend_kernel[triton.cdiv(tokens, chosen["QUERIES"]), heads, batch](
            *(query, key, value, columns, counts, *mask_bytes(mask)[:1], out),
            *(offset, scaling * LOG2_E, tokens, key.shape[2], heads // key.shape[1]),
            *(*strides, *mask_bytes(mask)[1:]),
            SIZE=size,
            **chosen,
        )
    return out


def dense_heads(states: Tensor) -> Tensor:
    """States [B, heads, tokens, size], contiguous in the last dimension."""
    return states if states.stride(-1) == 1 else states.contiguous()


def mask_bytes(mask: Tensor | None) -> tuple[Any, int, int]:
    """A mask [B or 1, 1, T, S] as bytes, and the strides of its sequences and tokens."""
    if mask is None:
        return None, 0, 0
    mask = as_bytes(mask)
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    return mask, 0 if len(mask) == 1 else mask.stride(0), mask.stride(2)
