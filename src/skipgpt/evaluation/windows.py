"""Cuts a stream of tokens into rows without context before them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from skipgpt.errors import DataError


def rows_of(ids: Tensor, length: int) -> list[Tensor]:
    """Cut ids [S] into rows of at most this length; a last row of a single token is left out.

    Raises:
        DataError: fewer than two tokens, of which none could be predicted.

    Example:
        >>> [len(row) for row in rows_of(torch.arange(10), 4)]
        [4, 4, 2]
    """
    starts = range(0, len(ids) - 1, length)  # no row for a single last token
    rows = [ids[start : start + length] for start in starts]
    if not rows:
        raise DataError(
            "cutting the text into rows",
            got=f"{len(ids)} token{'s' * (len(ids) != 1)}",
            expected="2 or more: the first predicts the second",
            todo="give more text, or read more of it (--max-tokens)",
        )
    return rows


def full_windows(ids: Tensor, length: int) -> Tensor:
    """Cut ids [S] into rows [N, T] of exactly this length, one or more.

    The remainder is left out, as in pruning papers.

    Raises:
        DataError: too short for one row.

    Example:
        >>> full_windows(torch.arange(10), 4).shape
        torch.Size([2, 4])
    """
    count = len(ids) // length
    if not count:
        raise DataError(
            "cutting the text into full windows",
            got=f"{len(ids)} tokens",
            expected=f"{length} or more, the length of one",
            todo="give more text, or a smaller window (--window)",
        )
    return ids[: count * length].view(count, length)


def batches(rows: Tensor | Sequence[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Yield rows of equal length stacked to [B, T], in their order, without padding."""
    for _, alike in itertools.groupby(rows, len):
        same = list(alike)
        for start in range(0, len(same), batch_size):
            yield torch.stack(same[start : start + batch_size])


def mean_context(rows: Tensor | Sequence[Tensor]) -> float:
    """Return the mean number of tokens that a token attends to, itself included."""
    lengths = [len(row) for row in rows]
    return sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
