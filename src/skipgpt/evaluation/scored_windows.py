"""Rows of which only the last tokens are scored: each token once, with context before it.

Shapes: S tokens of a stream, T of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from skipgpt.errors import ConfigError
from skipgpt.evaluation.closeness import ClosenessSum
from skipgpt.evaluation.perplexity import Perplexity, build_result, total_loss
from skipgpt.evaluation.windows import mean_context
from skipgpt.model.state import count_routing


@dataclass(frozen=True, eq=False)
class Span:
    """A row and where scoring begins.

    Attributes:
        ids: [T] token ids, without context before them.
        first: index of the first scored token, 1 or more.
    """

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


@torch.no_grad()
def perplexity_of_spans(
    model: nn.Module,
    spans: Sequence[Span],
    *,
    batch_size: int = 8,
    closeness_to: nn.Module | None = None,
) -> Perplexity:
    """Measure loss over the scored tokens, and sparsity over all tokens read.

    Arguments are as for `perplexity`, but that spans say where scoring begins.

    Example:
        perplexity_of_spans(model, sliding_spans(ids, 1024, 512))
    """
    rows = [span.ids for span in spans]
    firsts = iter([span.first for span in spans])
    closeness = None if closeness_to is None else ClosenessSum(closeness_to)
    nll = 0.0

    def add(ids: Tensor, logits: Tensor, losses: Tensor) -> None:
        nonlocal nll
        here = list(islice(firsts, len(ids)))
        for row, first in zip(losses, here, strict=True):
            nll += row[first - 1 :].double().sum().item()
        if closeness:
            closeness.add(ids, logits, here)

    with count_routing(model) as counts:
        total_loss(model, rows, batch_size, add)
    tokens = sum(len(span.ids) - span.first for span in spans)
    return build_result(model, counts, nll, tokens, mean_context(rows), closeness)
