"""Log-likelihoods of continuations, in padded batches with an attention mask.

The harness's own Hugging Face model pads without a mask; routers would then decide about padding,
and padding would count as sparsity.

Shapes: B rows of a forward, T tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from skipgpt.errors import DataError
from skipgpt.evaluation.harness.keep_counts import RequestCounts, ran_by_row
from skipgpt.model.loading.limits import check_ids
from skipgpt.model.state import record_routing, routing_state
from skipgpt.model.trace import Trace
from skipgpt.system.progress import advancing

logger = logging.getLogger("skipgpt")

AUTO_TOKENS = 8192
"""Tokens per forward, padding included, if the batch size is automatic."""

T = TypeVar("T")
Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""

Row = tuple[int, ...]


class Scored(NamedTuple):
    """A model's score of a continuation.

    Attributes:
        nats: its log-likelihood in nats.
        greedy: whether greedy decoding gives it.
        ran: what its row ran; None in `dense` execution.
        cut: whether the beginning of its context was cut off.
    """

    nats: float
    greedy: bool
    ran: RequestCounts | None
    cut: bool


@dataclass
class BatchSize:
    """The most rows that a forward has; `AUTO_TOKENS` and memory limit automatic ones, too."""

    most: int
    automatic: bool

    def rows(self, longest: int) -> int:
        """Return the rows of a forward whose longest row has this many tokens."""
        return max(1, min(self.most, AUTO_TOKENS // longest)) if self.automatic else self.most

    def fitting(self, run: Callable[[], T], rows: int) -> T | None:
        """Return what `run` returns; None if out of memory, with fewer rows from now on."""
        try:
            return run()
        except torch.OutOfMemoryError:
            if not self.automatic or rows == 1:
                raise
        self.most = rows // 2
        torch.cuda.empty_cache()
        logger.warning("%d rows do not fit into memory: %d from now on", rows, self.most)
        return None


@dataclass
class Scorer:
    """Scores continuations with a routed model at its current sparsity, in any execution.

    Rows are padded with the id `pad` on one side; the model reads at most `context` tokens.
    """

    model: nn.Module
    pad: int
    context: int
    batch: BatchSize
    side: Literal["left", "right"] = "right"

    def score(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Scored]]:
        """Yield each pair's index and score, the longest first.

        Pairs that differ in the last token only, as most one-word choices do, share a row.

        Raises:
            DataError: a continuation that is empty or longer than the model's context, or a token
                that the model has no embedding for.
        """
        if pairs:
            ids = torch.tensor([n for pair in pairs for side in pair for n in side])
            check_ids("scoring a choice", self.model, None, ids)
        shared: dict[Row, list[int]] = {}
        for n, pair in enumerate(pairs):
            shared.setdefault(self._row(*pair), []).append(n)
        self._say_what_is_cut(pairs)
        rows = sorted(shared, key=len, reverse=True)
        start = 0
        with advancing("scoring", unit="row", total=len(rows)) as advance:
            while start < len(rows):
                chunk = rows[start : start + self.batch.rows(len(rows[start]))]
                tails = [max(len(pairs[n][1]) for n in shared[row]) for row in chunk]
                found = self.batch.fitting(lambda c=chunk, t=tails: self._forward(c, t), len(chunk))  # type: ignore[misc]
                if found is None:
                    continue
                for row, (logprobs, ran) in zip(chunk, found, strict=True):
                    for n in shared[row]:
                        yield n, _of(logprobs, pairs[n][1], ran, self._is_cut(pairs[n]))
                start += len(chunk)
                advance(start, len(rows))

    def recording(self) -> AbstractContextManager[Trace | None]:
        """Record decisions inside the block; nothing in `dense` execution."""
        dense = routing_state(self.model).execution == "dense"
        return nullcontext() if dense else record_routing(self.model)

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> Row:
        """Return the tokens to read for a score; if too long, their beginning is cut off."""
        if not context or not 0 < len(continuation) <= self.context:
            raise DataError(
                "scoring a choice",
                got=f"{len(continuation)} tokens after a context of {len(context)}",
                expected=f"1 to {self.context}, which the model reads at once, after 1 or more",
                todo="leave the item out, or take a model with a longer context",
            )
        return tuple([*context, *continuation][-self.context - 1 : -1])

    def _is_cut(self, pair: Pair) -> bool:
        return len(pair[0]) + len(pair[1]) > self.context + 1

    def _say_what_is_cut(self, pairs: Sequence[Pair]) -> None:
        if cut := sum(map(self._is_cut, pairs)):
            logger.warning(
                "%d of %d requests are longer than the model's context of %d tokens: "
                "the beginning of their context is cut off",
                cut,
                len(pairs),
                self.context,
            )

    def _forward(
        self, rows: Sequence[Row], tails: Sequence[int]
    ) -> list[tuple[Tensor, RequestCounts | None]]:
        """Return each row's log-probabilities [tail, V] after its last tokens, and what it ran."""
        lengths = [len(row) for row in rows]
        padded = partial(pad_sequence, batch_first=True, padding_side=self.side)
        ids = padded([torch.tensor(row) for row in rows], padding_value=self.pad)
        mask = padded([torch.ones(length, dtype=torch.int64) for length in lengths])
        ends = [ids.shape[1] if self.side == "left" else length for length in lengths]
        first = min(end - tail for end, tail in zip(ends, tails, strict=True))
        device = next(self.model.parameters()).device
        takes = inspect.signature(_plain(self.model).forward).parameters
        options: dict[str, Tensor] = {}
        if not mask.all():
            options["attention_mask"] = mask
            if self.side == "left" and "position_ids" in takes:
                options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in takes:  # the head costs as much as a layer, or many
            options["logits_to_keep"] = torch.arange(first, max(ends))
        with self.recording() as trace, torch.no_grad():
            logits = self.model(
                input_ids=ids.to(device),
                use_cache=False,
                **{name: value.to(device) for name, value in options.items()},
            ).logits
        gone = first if "logits_to_keep" in options else 0
        rans = ran_by_row(trace, lengths) if trace else [None] * len(rows)
        return [
            (logits[n, end - tail - gone : end - gone].float().log_softmax(-1), ran)
            for n, (end, tail, ran) in enumerate(zip(ends, tails, rans, strict=True))
        ]


def _of(
    logprobs: Tensor, continuation: Sequence[int], ran: RequestCounts | None, cut: bool
) -> Scored:
    wanted = torch.tensor(continuation, device=logprobs.device)
    logprobs = logprobs[-len(wanted) :]
    nats = logprobs.gather(1, wanted[:, None]).sum().item()
    return Scored(nats, bool((logprobs.argmax(-1) == wanted).all()), ran, cut)


def _plain(model: nn.Module) -> Any:
    """Return the model below PEFT's wrapper, whose forward takes anything."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
