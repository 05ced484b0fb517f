"""Attention of packed queries, against its plain twin and against sdpa."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from twins import FAST, every_dtype, keep_some, normal, same

from plain_kernels import PLAIN
from skipgpt.kernels.compaction import KeptQueries, kept_queries


def used(attended: torch.Tensor, found: KeptQueries) -> torch.Tensor:
    """Rows [N, H, size] that a kernel has to write."""
    return attended.flatten(0, 1)[found.rows[: int(found.count)].long()]


def states(
    heads: int, key_heads: int, tokens: int, keys: int, size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Queries as attention hands them over, a transposed view, and keys and values."""
    query = normal(2, tokens, heads, size, dtype=dtype).transpose(1, 2)
    return (query, *(normal(2, key_heads, keys, size, dtype=dtype) for _ in range(2)))


@every_dtype
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 16), (4, 2, 24), (6, 1, 8)])
@pytest.mark.parametrize("kept", [0, 1, 70, 280])
def test_attend(kept: int, heads: int, key_heads: int, size: int, dtype: torch.dtype) -> None:
    found = kept_queries(keep_some(2, 140, kept))
    given = states(heads, key_heads, 140, 140, size, dtype)
    rest = (found.columns, found.counts, None, 0, 0.3)
    same(used(FAST.attend(*given, *rest), found), used(PLAIN.attend(*given, *rest), found))


def test_sequences_may_keep_none_and_all() -> None:
    keep = torch.stack([torch.zeros(20), torch.ones(20)]).bool()
    found, given = kept_queries(keep), states(2, 1, 20, 20, 16, torch.float32)
    rest = (found.columns, found.counts, None, 0, 0.25)
    same(used(FAST.attend(*given, *rest), found), used(PLAIN.attend(*given, *rest), found))


def test_all_queries_give_causal_attention() -> None:
    found = kept_queries(torch.ones(2, 33, dtype=torch.bool))
    query, key, value = states(4, 2, 33, 33, 16, torch.float32)
    wanted = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    for kernels in (FAST, PLAIN):
        made = kernels.attend(query, key, value, found.columns, found.counts, None, 0, 0.25)
        same(made, wanted.transpose(1, 2).contiguous())


@pytest.mark.parametrize("offset", [0, 5, 40])
def test_cached_keys_are_ahead_of_the_first_query(offset: int) -> None:
    found = kept_queries(keep_some(2, 10, 11))
    given = states(2, 2, 10, 10 + offset, 16, torch.float32)
    rest = (found.columns, found.counts, None, offset, 0.25)
    same(used(FAST.attend(*given, *rest), found), used(PLAIN.attend(*given, *rest), found))


@pytest.mark.parametrize("shared", [False, True])
def test_a_mask_hides_more(shared: bool) -> None:
    found = kept_queries(keep_some(2, 20, 23))
    given = states(2, 1, 20, 70, 16, torch.float32)
    mask = torch.rand(1 if shared else 2, 1, 20, 70) < 0.5
    mask[0, 0, :3] = False  # padding, which sees nothing
    for shown in (mask, mask.expand(2, -1, -1, -1)):
        rest = (found.columns, found.counts, shown, 50, 0.25)
        same(used(FAST.attend(*given, *rest), found), used(PLAIN.attend(*given, *rest), found))


def test_what_lies_behind_the_last_query_is_not_read() -> None:
    keep = torch.zeros(1, 30, dtype=torch.bool)
    keep[0, [2, 9, 12]] = True
    found = kept_queries(keep)
    query, key, value = (each[:1].clone() for each in states(2, 2, 30, 30, 16, torch.float32))
    for each in (key, value):
        each[:, :, 13:] = torch.nan
    query[~keep[:, None].expand(-1, 2, -1)] = torch.nan
    made = FAST.attend(query, key, value, found.columns, found.counts, None, 0, 0.25)
    assert used(made, found).isfinite().all()
