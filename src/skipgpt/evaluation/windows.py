"""Cuts a stream of S tokens into rows of T, without context before them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from skipgpt.errors import ConfigError, DataError
from skipgpt.model.loading.limits import context_of

logger = logging.getLogger("skipgpt")
T = TypeVar("T")


def rows_of(ids: Tensor, length: int) -> list[Tensor]:
    """Cut ids [S] into rows of at most this length; a last row of a single token is left out.

    Raises:
        DataError: fewer than two tokens, of which none could be predicted.

    Example:
        >>> [len(row) for row in rows_of(torch.arange(10), 4)]
        [4, 4, 2]
    """
    starts = range(0, len(ids) - 1, length)  # no row for a single last token
    return one_or_more([ids[start : start + length] for start in starts], len(ids))


def one_or_more(rows: list[T], tokens: int) -> list[T]:
    """Return rows that were cut from a text; a DataError if there is none."""
    if not rows:
        raise DataError(
            "cutting the text into rows",
            got=f"{tokens} token{'s' * (tokens != 1)}",
            expected="2 or more: the first predicts the second",
            todo="give more text, or read more of it (--max-tokens)",
        )
    return rows


def within_context(model: Any, length: int) -> int:
    """Return tokens per row: those asked for, or the model's context, with a warning."""
    context = context_of(model) or length
    if length > context:
        logger.warning(
            "rows of %d tokens are longer than the model's context: cut to %d", length, context
        )
    return min(length, context)


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


@dataclass(frozen=True, eq=False)
class Span:
    """A row of ids [T] without context before it, and the index of its first scored token."""

    ids: Tensor
    first: int = 1


def sliding_spans(ids: Tensor, window: int, stride: int) -> list[Span]:
    """Cut ids [S] into windows `stride` tokens apart; all tokens but the first are scored.

    A token is scored in the first window that holds it, so in all but the first window with at
    least `window - stride` tokens before it.

    Raises:
        ConfigError: a stride that would leave tokens out.

    Example:
        >>> [(len(span.ids), span.first) for span in sliding_spans(torch.arange(10), 6, 2)]
        [(6, 1), (6, 4), (6, 4)]
    """
    if not 1 <= stride < window:
        raise ConfigError(
            "cutting the text into windows",
            got=f"a stride of {stride} in windows of {window}",
            expected=f"1 to {window - 1}",
        )
    spans, scored = [], 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        if end > scored:
            spans.append(Span(ids[begin:end], scored - begin))
        scored = end
    return spans


def document_spans(ids: Tensor, window: int, first: int = 1) -> list[Span]:
    """Cut ids [T] into rows that each begin with the last token of the one before.

    So every token but the `first` ones, the prefix, is scored; in a document no longer than a
    window, with all tokens before it as context. A token with nothing before it is never scored.

    Example:
        >>> [span.ids.tolist() for span in document_spans(torch.arange(6), 3)]
        [[0, 1, 2], [2, 3, 4], [4, 5]]
    """
    starts = range(0, max(0, len(ids) - 1), window - 1)
    return [Span(ids[n : n + window], 1 if n else max(1, first)) for n in starts]


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
