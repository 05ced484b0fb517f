"""One request through `generate`: tokens as they come, where they end, and what was skipped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from skipgpt.analysis.text import Pieces
from skipgpt.config import Budget
from skipgpt.model.dial import at_sparsity
from skipgpt.model.trace import record_routing
from skipgpt.serving.stop_text import StopText

Reason = Literal["stop", "length"]
COLDEST = 1e-4
"""Temperatures below are greedy: divided by them, logits would overflow."""


@dataclass(frozen=True)
class Job:
    """What to generate.

    Attributes:
        ids: of the prompt, at least one.
        max_tokens: the most to add.
        temperature: 0 is greedy.
        top_p: of sampling.
        seed: of sampling; None draws on.
        stops: sequences that end the text.
        sparsity: share to save; the model's own where None.
        budget: what it counts; as the model was trained where None.
        logprobs: how many of the likeliest tokens are reported at each place; None reports none.
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
class Chosen:
    """A token and how likely it was.

    Attributes:
        text: of the token alone.
        start: characters of the generated text before it.
        logprob: natural logarithm of its probability, before temperature.
        top: the likeliest tokens at this place, with theirs.
    """

    text: str
    start: int
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that may be shown, and the tokens that begin in it."""

    text: str
    tokens: tuple[Chosen, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a job.

    Attributes:
        reason: `stop` at a stop sequence or the end of the text, `length` at the limit.
        new_tokens: how many were generated.
        decisions: (token, module) pairs decided about.
        skipped: how many of those did not run.
    """

    reason: Reason
    new_tokens: int
    decisions: int
    skipped: int


def run_job(
    model: Any,
    tokenizer: Any,
    job: Job,
    tell: Callable[[Piece], None],
    cancelled: threading.Event | None = None,
) -> Done:
    """Generate; greedy output is that of `skipgpt.generate`.

    Args:
        model: with routers.
        tokenizer: of the base model.
        job: what to do.
        tell: called with each piece of text, in order.
        cancelled: set from elsewhere to stop at the next token.

    Raises:
        ConfigError: the dial does not reach the sparsity.
    """
    watch = _Watch(tokenizer, job, tell, cancelled or threading.Event())
    how: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if job.temperature > COLDEST:
        how = {"do_sample": True, "temperature": job.temperature, "top_p": job.top_p, "top_k": 0}
    if job.logprobs is not None:
        how["logits_processor"] = [watch.probabilities]
    ids = torch.tensor([job.ids], device=model.device)
    dial = (
        nullcontext()
        if job.sparsity is None
        else at_sparsity(model, job.sparsity, budget=job.budget)
    )
    with torch.no_grad(), _seeded(job.seed, ids.device), dial, record_routing(model) as trace:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=job.max_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            streamer=watch,
            stopping_criteria=[watch.stopping],
            **how,
        )
    kept, tokens = trace.keep_counts()
    decisions = tokens * len(kept)
    ends = watch.text.found or watch.last in _ends(model)
    return Done(
        "stop" if ends else "length", watch.count, decisions, decisions - sum(kept.values())
    )


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from a seed; those of others go on as if there had been none."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _ends(model: Any) -> Sequence[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


class _Watch:
    """A streamer for `generate`, and what it is asked between two tokens."""

    def __init__(
        self, tokenizer: Any, job: Job, tell: Callable[[Piece], None], cancelled: threading.Event
    ) -> None:
        self.text, self.count, self.last = StopText(job.stops), 0, -1
        self.probabilities, self.stopping = _Probabilities(), _Stopping(self, cancelled)
        self._tokenizer, self._job, self._tell = tokenizer, job, tell
        self._pieces, self._special = Pieces(tokenizer, job.ids), set(tokenizer.all_special_ids)
        self._begun = False
        self._come = self._shown = 0  # characters
        self._waiting: list[Chosen] = []

    def put(self, ids: Tensor) -> None:
        if not self._begun:  # the prompt
            self._begun = True
            return
        token = int(ids.flatten()[0])
        self.count, self.last = self.count + 1, token
        if self._job.logprobs is not None:
            self._waiting.append(self._chosen(token, self._job.logprobs))
        text = "" if token in self._special else self._pieces.add(token)
        self._come += len(text)
        self._show(self.text.add(text))

    def end(self) -> None:
        rest = self._pieces.rest()
        self._come += len(rest)
        self._show(self.text.add(rest) + self.text.rest(), last=not self.text.found)

    def _show(self, text: str, last: bool = False) -> None:
        self._shown += len(text)
        ready = [token for token in self._waiting if token.start < self._shown or last]
        self._waiting = self._waiting[len(ready) :]
        if text or ready:
            self._tell(Piece(text, tuple(ready)))

    def _chosen(self, token: int, places: int) -> Chosen:
        logs = self.probabilities.newest
        top = logs.topk(places) if places else None
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True) if top else ()
        return Chosen(
            self._tokenizer.decode([token]),
            self._come,
            logs[token].item(),
            tuple((self._tokenizer.decode([n]), value) for n, value in pairs),
        )


class _Probabilities(LogitsProcessor):  # type: ignore[misc]
    """Remembers log-probabilities [V] of the newest place; changes nothing."""

    newest: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.newest = scores[0].float().log_softmax(-1)
        return scores


class _Stopping(StoppingCriteria):  # type: ignore[misc]
    """Ends `generate` at a stop sequence, or when nobody waits any more."""

    def __init__(self, watch: _Watch, cancelled: threading.Event) -> None:
        self._watch, self._cancelled = watch, cancelled

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        over = self._watch.text.found or self._cancelled.is_set()
        return torch.full((len(input_ids),), over, device=input_ids.device)
