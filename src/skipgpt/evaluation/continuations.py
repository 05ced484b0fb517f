"""Greedy continuations of a model, scored by its dense model and by their repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skipgpt.errors import DataError
from skipgpt.evaluation.closeness import as_dense
from skipgpt.generation.run import continue_ids
from skipgpt.model.loading.generation_settings import Ends
from skipgpt.system.progress import advancing

PROMPT_TOKENS = 64
NEW_TOKENS = 64
NGRAM = 4


@dataclass(frozen=True)
class Continuations:
    """Greedy continuations of a model beside those of its dense model.

    Attributes:
        count: how many prompts were continued, each of `PROMPT_TOKENS` tokens by `NEW_TOKENS`.
        nll_per_token: loss of the model's continuations under the dense model, in nats per token.
        dense_nll_per_token: the same of the dense model's own continuations.
        repetition: share of the n-grams of `NGRAM` tokens that occur earlier in the same
            continuation.
        dense_repetition: the same of the dense model's own.
        same: mean share of a continuation before it first differs from the dense model's.
    """

    count: int
    nll_per_token: float
    dense_nll_per_token: float
    repetition: float
    dense_repetition: float
    same: float

    def __str__(self) -> str:
        return (
            f"{self.count} greedy continuations of {NEW_TOKENS} tokens: "
            f"{self.nll_per_token:.4f} nats per token under the dense model "
            f"(its own: {self.dense_nll_per_token:.4f}), "
            f"{self.repetition:.1%} of {NGRAM}-grams repeated (its own: "
            f"{self.dense_repetition:.1%}), the first {self.same:.1%} equal to its own"
        )


@torch.no_grad()
def measure_continuations(
    model: nn.Module, rows: Sequence[Tensor], count: int, dense: nn.Module, *, batch_size: int = 8
) -> Continuations:
    """Continue the beginnings of rows of held-out text greedily, routed and dense, and compare.

    Loss on given text and multiple choice hide how errors add up when a model reads its own output.
    A bad continuation is unlikely under the dense model, or repeats itself; repetitive text is also
    likely, which is why both are measured.

    The dense model is `model` itself, or its base where LoRA is part of its weights. Rows [T]
    shorter than `PROMPT_TOKENS` are left out; the first `count` others are continued.

    Raises:
        DataError: there are fewer rows than `count`.

    Example:
        print(measure_continuations(model, list(held_out), 100, model))
    """
    rows = [row for row in rows if len(row) >= PROMPT_TOKENS][:count]
    if not 0 < count <= len(rows):
        raise DataError(
            f"continuing {count} rows of text",
            got=f"{len(rows)} rows of {PROMPT_TOKENS} tokens or more",
            expected=f"{max(count, 1)}",
            todo="give more text, longer rows, or ask for fewer continuations",
        )
    found = torch.zeros(2, 2, dtype=torch.float64)
    same = 0.0
    device = next(model.parameters()).device
    with advancing("continuing text", unit="text", total=len(rows)) as advance:
        for start in range(0, len(rows), batch_size):
            batch = [row[:PROMPT_TOKENS] for row in rows[start : start + batch_size]]
            prompts = torch.stack(batch).to(device)
            routed = greedy(model, prompts, NEW_TOKENS)
            with as_dense(dense):
                own = greedy(dense, prompts, NEW_TOKENS)
                scores = [_score(dense, prompts, texts) for texts in (routed, own)]
            found += torch.tensor(scores, dtype=torch.float64)
            same += (routed == own).long().cumprod(dim=1).double().mean(dim=1).sum().item()
            advance(start + len(batch), len(rows))
    (nll, repeated), (own_nll, own_repeated) = (
        found / torch.tensor([len(rows) * NEW_TOKENS, len(rows)])
    ).tolist()
    return Continuations(len(rows), nll, own_nll, repeated, own_repeated, same / len(rows))


def greedy(model: nn.Module, prompts: Tensor, new_tokens: int) -> Tensor:
    """Return greedy continuations [B, new_tokens] of prompts [B, T]; no token ends a text."""
    output = continue_ids(model, prompts, Ends(()), max_new_tokens=new_tokens)
    continued: Tensor = output["sequences"][:, prompts.shape[1] :]
    return continued


def repetition(text: Sequence[int], n: int = NGRAM) -> float:
    """Return the share of a text's n-grams that occur earlier in it.

    Example:
        >>> repetition([1, 2, 3, 1, 2, 3], n=2)
        0.4
    """
    grams = [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _score(dense: nn.Module, prompts: Tensor, texts: Tensor) -> tuple[float, float]:
    """Return summed nats of texts [B, N] after prompts [B, T] under a model, and repetition."""
    logits = dense(input_ids=torch.cat([prompts, texts], dim=1), use_cache=False).logits
    predicted = logits[:, prompts.shape[1] - 1 : -1].flatten(0, 1).float()
    nats = cross_entropy(predicted, texts.flatten(), reduction="sum").item()
    return nats, sum(repetition(text) for text in texts.tolist())
