"""Run one request through `generate`, with streaming, stop strings and measured sparsity."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from skipgpt.config import Budget
from skipgpt.generation.end_of_text import EndOfText
from skipgpt.generation.run import continue_ids
from skipgpt.generation.stop_strings import NewText
from skipgpt.model.loading.generation_settings import Ends, ends_of, sampling_arguments
from skipgpt.model.sparsity import at_sparsity
from skipgpt.model.state import count_routing
from skipgpt.serving.tokens import TokenLogprob, Tokens

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        ids: token ids of the prompt, at least one.
        max_tokens: maximum new tokens.
        temperature: 0 is greedy.
        top_p: for nucleus sampling.
        seed: for sampling; None uses the generator as it is.
        stops: sequences that end the text.
        sparsity: share to save; the model's own where None.
        budget: unit of `sparsity`; as the model was trained where None.
        logprobs: how many most likely tokens to report per position; None reports nothing.
    """

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    sparsity: float | None = None
    budget: Budget | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class TextChunk:
    """Text that can be sent, and the tokens that begin in it."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Completion:
    """How a request ended.

    Attributes:
        reason: `stop` at a stop string or the end of the text, `length` at the limit.
        new_tokens: how many were generated.
        decisions: number of (token, module) decisions.
        skipped: how many of those skipped.
    """

    reason: Reason
    new_tokens: int
    decisions: int
    skipped: int


def run_request(
    model: Any,
    tokenizer: Any,
    request: GenerationRequest,
    tell: Callable[[TextChunk], None],
    cancelled: threading.Event | None = None,
) -> Completion:
    """Run a request; greedy output is that of `skipgpt.generation.generate`.

    Args:
        model: with routers.
        tokenizer: tokenizer of the base model.
        request: what to generate.
        tell: called with each text chunk, in order.
        cancelled: set from elsewhere to stop at the next token.

    Raises:
        ConfigError: the sparsity is beyond the calibration curve.
    """
    ends = ends_of(model, tokenizer, request.stops)
    watch = _Watch(tokenizer, request, ends, tell, cancelled or threading.Event())
    how = sampling_arguments(request.temperature, request.top_p)
    if request.logprobs is not None:
        how["logits_processor"] = [watch.probabilities]
    ids = torch.tensor([request.ids], device=model.device)
    with ExitStack() as stack:
        if request.seed is not None:
            devices = [ids.device] if ids.device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices))
            torch.manual_seed(request.seed)
        if request.sparsity is not None:
            stack.enter_context(at_sparsity(model, request.sparsity, budget=request.budget))
        counts = stack.enter_context(count_routing(model))
        continue_ids(
            model, ids, ends, max_new_tokens=request.max_tokens, stopping_criteria=[watch], **how
        )
    watch.end()
    kept = counts.kept()
    decisions = counts.tokens * len(kept)
    reason: Reason = "stop" if watch.text.ended else "length"
    return Completion(reason, watch.counts[0], decisions, decisions - sum(kept.values()))


class _Watch(EndOfText):
    """Stopping criterion that sends each new token and stops on cancellation.

    Attributes:
        text: the new text.
        probabilities: the logits processor that log-probabilities are taken from.
    """

    def __init__(
        self,
        tokenizer: Any,
        request: GenerationRequest,
        ends: Ends,
        tell: Callable[[TextChunk], None],
        cancelled: threading.Event,
    ) -> None:
        self.text, self.probabilities = NewText(tokenizer, request.ids, ends), _Probabilities()
        super().__init__([self.text], self._take)
        self._tokens, self._places = Tokens(tokenizer, ends), request.logprobs
        self._send, self._cancelled = tell, cancelled
        self._shown = 0  # characters

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self._cancelled.is_set():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return super().__call__(input_ids, scores) | self._cancelled.is_set()

    def _take(self, token: int, shown: str) -> None:
        if self._places is not None:
            logs, likely = self.probabilities.newest, []
            if self._places:
                top = logs.topk(min(self._places, len(logs)))
                likely = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            start = self.text.length - len(self.text.piece)
            self._tokens.add(token, self.text.piece, start, logs[token].item(), likely)
        self._show(shown)

    def end(self) -> None:
        """Send the text that was held back."""
        rest = self.text.rest()
        self._tokens.complete(self.text.piece)
        self._show(rest, last=not self.text.found)

    def _show(self, text: str, last: bool = False) -> None:
        self._shown += len(text)
        ready = self._tokens.up_to(math.inf if last else self._shown)
        if text or ready:
            self._send(TextChunk(text, ready))


class _Probabilities(LogitsProcessor):  # type: ignore[misc]
    """Remembers the log-probabilities [V] of the newest position; changes no logits."""

    newest: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.newest = scores[0].float().log_softmax(-1)
        return scores
