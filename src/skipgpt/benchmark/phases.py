"""What is timed: prefill, decode, and both in `generate`.

Each phase makes a `Task` for a model, and says what the same run costs in FLOPs or bytes. Shapes:
B batch, T prompt tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from skipgpt.benchmark.captured import StaticDecode, captured
from skipgpt.benchmark.clock import Task
from skipgpt.cost import Bound, Forward, ideal_speedup, work
from skipgpt.model.trace import MODULES, Step
from skipgpt.routing.decision import Site

PhaseName = Literal["prefill", "decode", "generate"]


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of the grid.

    Attributes:
        phase: what is timed.
        ids: [B, T], the prompts.
        new_tokens: decoded after the prompt; 0 in prefill.
        captured: whether decoding runs as a CUDA graph.
    """

    phase: PhaseName
    ids: Tensor
    new_tokens: int
    captured: bool = False

    def task(self, model: Any) -> Task:
        """The run of one model; routes drawn at random are the same in every run.

        A cache to decode from is filled here, once, under the rule that is in force.
        """
        if self.captured:
            return _replayed(model, self.ids, self.new_tokens)
        if self.phase == "decode":
            return Task(lambda given: self._decode(model, given), _from(_filled(model, self.ids)))
        run = self._prefill if self.phase == "prefill" else self._generate
        return Task(lambda _: run(model), _seeded)

    def ideal(self, model: Any, steps: Sequence[Step], prefill_share: float) -> float:
        """The speed-up that skipping can give at best.

        Args:
            model: with routers.
            steps: decisions of one run.
            prefill_share: of the dense seconds of `generate`, what prefill takes.
        """
        batch, prompt = self.ids.shape
        if self.phase == "prefill":
            return _ideal(model, Forward(batch, prompt), steps)
        between = Forward(batch, 1, prompt + self.new_tokens // 2)
        if self.phase == "decode":
            return _ideal(model, between, steps)
        first = _ideal(model, Forward(batch, prompt), steps[:1])
        rest = _ideal(model, between, steps[1:]) if steps[1:] else 1.0
        return 1 / (prefill_share / first + (1 - prefill_share) / rest)

    def _prefill(self, model: Any) -> None:
        model(input_ids=self.ids, use_cache=True, logits_to_keep=1)

    def _decode(self, model: Any, given: tuple[Any, Tensor]) -> None:
        cache, token = given
        for _ in range(self.new_tokens):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)

    def _generate(self, model: Any) -> None:
        model.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            do_sample=False,
            min_new_tokens=self.new_tokens,
            max_new_tokens=self.new_tokens,
            pad_token_id=0,
        )


def keep_and_union(steps: Sequence[Step]) -> tuple[dict[Site, float], dict[Site, float]]:
    """Share of tokens that ran each site, and share of forwards in which some token did."""
    keep: dict[Site, list[float]] = {}
    ran: dict[Site, list[float]] = {}
    for step in steps:
        for layer, decision in step.decisions.items():
            for module in MODULES:
                kept = getattr(decision, module).keep
                keep.setdefault(Site(layer, module), []).append(float(kept.float().mean()))
                ran.setdefault(Site(layer, module), []).append(float(kept.any()))
    return _means(keep), _means(ran)


def _ideal(model: Any, forward: Forward, steps: Sequence[Step]) -> float:
    """Prefill is bound by FLOPs, decoding by the bytes of the weights that are read."""
    keep, ran = keep_and_union(steps)
    bound: Bound = "bandwidth" if forward.tokens == 1 else "compute"
    return ideal_speedup(work(model, forward), work(model, forward, keep, ran), bound)


def _means(values: Mapping[Site, list[float]]) -> dict[Site, float]:
    return {site: sum(each) / len(each) for site, each in values.items()}


def _replayed(model: Any, ids: Tensor, new_tokens: int) -> Task:
    """Steps of decoding as a CUDA graph, from the end of the prompt each time."""
    _seeded()
    decode = StaticDecode(model, ids, new_tokens)
    step = captured(decode)

    def prepare() -> None:
        _seeded()
        decode.reset()

    def run() -> None:
        for _ in range(new_tokens):
            step()

    return Task(lambda _: run(), prepare)


def _seeded() -> None:
    torch.manual_seed(0)


def _from(filled: tuple[Any, Tensor]) -> Callable[[], tuple[Any, Tensor]]:
    """Makes copies, for each run to add to its own."""

    def prepare() -> tuple[Any, Tensor]:
        _seeded()
        return copy.deepcopy(filled)

    return prepare


def _filled(model: Any, ids: Tensor) -> tuple[Any, Tensor]:
    """A cache of the prompt's keys and values, and the next token."""
    _seeded()
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return output.past_key_values, output.logits[:, -1:].argmax(-1)
