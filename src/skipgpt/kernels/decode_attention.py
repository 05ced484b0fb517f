"""Attention of one query per sequence, `decode_attend`, in two kernels.

    keys      ├── split 0 ──┼── split 1 ──┼── split 2 ──┤
    kernel 1  best score, weight and weighted values per split, for all heads that share the keys
    kernel 2  their sum

A single sequence has too few heads to fill a GPU, so its keys are split. Where a sequence skips,
its programs return at once; keys that the mask hides are not loaded.

Shapes: B sequences, S keys, H heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipgpt.kernels.launch import Limits, as_bytes, limits, on, power_of_two
from skipgpt.kernels.packed_attention import LOG2_E, dense_heads, mask_bytes

SHORTEST_SPLIT = 128
MOST_SPLITS = 64
KEYS = 64
"""Keys per step; splits are multiples of it."""

CHUNK = 16
"""Splits that are summed at a time."""


@triton.jit
def split_kernel(query, key, value, keep, mask, totals, bests, weights, scale, S, split, group,
                 query_batch, query_head, key_batch, key_head, key_token,
                 value_batch, value_head, value_token, mask_batch,
                 SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
                 KEYS: tl.constexpr):  # fmt: skip
    """One split of the keys of one key head; `scale` contains log2(e)."""
    part, key_heads = tl.program_id(0), tl.num_programs(1)
    head, sequence = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    if tl.load(keep + sequence) == 0:
        return
    members, width = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    real, inside = members < group, width < SIZE
    heads = head * group + members
    asked = tl.load(
        query + sequence * query_batch + heads[:, None] * query_head + width[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    )
    keys = key + sequence * key_batch + head * key_head
    values = value + sequence * value_batch + head * value_head

    best = tl.full((GROUP,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUP,), tl.float32)
    total = tl.zeros((GROUP, WIDTH), tl.float32)
    end = tl.minimum((part + 1) * split, S)
    for start in range(part * split, end, KEYS):
        token = start + tl.arange(0, KEYS)
        seen = token < end
        if mask is not None:
            shown = tl.load(mask + sequence * mask_batch + token, mask=seen, other=0)
            seen = seen & (shown != 0)
        left = tl.load(
            keys + token.to(tl.int64)[None, :] * key_token + width[:, None],
            mask=inside[:, None] & seen[None, :],
            other=0.0,
        )
        score = tl.dot(asked, left, input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(best - base)
        share = tl.exp2(score - base[:, None])
        weight = weight * shrink + tl.sum(share, 1)
        right = tl.load(
            values + token.to(tl.int64)[:, None] * value_token + width[None, :],
            mask=seen[:, None] & inside[None, :],
            other=0.0,
        )
        total = tl.dot(
            share.to(right.dtype), right, total * shrink[:, None], input_precision="ieee"
        )
        best = higher

    place = ((sequence * key_heads * group + heads) * tl.num_programs(0)) + part
    tl.store(bests + place, best, mask=real)
    tl.store(weights + place, weight, mask=real)
    tl.store(
        totals + place[:, None] * SIZE + width[None, :], total, mask=real[:, None] & inside[None, :]
    )


@triton.jit
def sum_kernel(totals, bests, weights, keep, out, splits,
               SIZE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """Sum the splits of one head of one sequence."""
    head, sequence = tl.program_id(0), tl.program_id(1)
    if tl.load(keep + sequence) == 0:
        return
    width = tl.arange(0, WIDTH)
    inside = width < SIZE
    first = (sequence * tl.num_programs(0) + head).to(tl.int64)
    best = tl.full((1,), float("-inf"), tl.float32)
    weight = tl.zeros((1,), tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, splits, CHUNK):
        part = start + tl.arange(0, CHUNK)
        there = part < splits
        place = first * splits + part
        bests_here = tl.load(bests + place, mask=there, other=float("-inf"))
        higher = tl.maximum(best, tl.max(bests_here, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink, share = tl.exp2(best - base), tl.exp2(bests_here - base)
        weights_here = tl.load(weights + place, mask=there, other=0.0)
        weight = weight * shrink + tl.sum(weights_here * share, 0)
        totals_here = tl.load(
            totals + place[:, None] * SIZE + width[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(totals_here * share[:, None], 0)
        best = higher
    total = total / tl.where(weight == 0.0, 1.0, weight)
    tl.store(out + first * SIZE + width, total.to(out.dtype.element_ty), mask=inside)


def tiles(size: int, group: int, dtype: torch.dtype, limit: Limits) -> dict[str, int]:
    """Tiles of `split_kernel` for heads of this size, `group` of which share keys."""
    width, members = power_of_two(size), power_of_two(group)
    each, held = 2 * KEYS * width * dtype.itemsize, members * width * dtype.itemsize
    return {
        "WIDTH": width,
        "GROUP": members,
        "KEYS": KEYS,
        "num_warps": 4,
        "num_stages": limit.stages(each, held, most=3),
    }


def split_length(keys: int) -> int:
    """Keys per split: enough to pay for a program, and few enough splits to sum quickly."""
    each = max(SHORTEST_SPLIT, triton.cdiv(keys, MOST_SPLITS))
    return int(triton.cdiv(each, KEYS)) * KEYS


def decode_attend(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Attention [B, 1, H, size] of the query of each sequence that keeps; others are arbitrary.

    Args:
        query: [B, H, 1, size].
        key: [B, key heads, S, size].
        value: as key.
        keep: [B] bool, which sequences run.
        mask: [B or 1, 1, 1, S] bool, which keys are seen; None for all.
        scaling: of the scores.
    """
    batch, heads, _, size = query.shape
    key_heads, keys = key.shape[1:3]
    query, key, value = dense_heads(query), dense_heads(key), dense_heads(value)
    split = split_length(keys)
    splits = triton.cdiv(keys, split)
    totals = torch.empty(batch, heads, splits, size, dtype=torch.float32, device=query.device)
    bests, weights = totals.new_empty(2, batch, heads, splits)
    out, kept = query.new_empty(batch, 1, heads, size), as_bytes(keep.contiguous())
    shown, mask_batch, _ = mask_bytes(mask)
    group = heads // key_heads
    chosen = tiles(size, group, query.dtype, limits(query.device))
    strides = (*query.stride()[:2], *key.stride()[:3], *value.stride()[:3], mask_batch)
    with on(query):
        split_kernel[splits, key_heads, batch](
            *(query, key, value, kept, shown, totals, bests, weights),
            *(scaling * LOG2_E, keys, split, group, *strides),
            SIZE=size,
            **chosen,
        )
        sum_kernel[heads, batch](
            *(totals, bests, weights, kept, out, splits),
            SIZE=size,
            WIDTH=chosen["WIDTH"],
            CHUNK=CHUNK,
        )
    return out
