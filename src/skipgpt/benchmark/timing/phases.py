"""The inference phases of the benchmark: prefill, decode, and both in `generate`.

Each phase makes a `Task` for a model, and says what the same run costs in FLOPs or bytes. Shapes:
B batch, T prompt tokens.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

from torch import Tensor
from transformers.cache_utils import DynamicCache

from skipgpt.benchmark.timing.candidate import seeded
from skipgpt.benchmark.timing.clock import Task
from skipgpt.benchmark.timing.cuda_graph import StaticDecode, captured
from skipgpt.cost import Forward, Work, work
from skipgpt.generation.run import continue_ids
from skipgpt.model.caches.growing_cache import make_room
from skipgpt.model.loading.generation_settings import Ends
from skipgpt.model.state import count_routing, record_routing
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import Step, Trace
from skipgpt.routing.decision import MODULES, Site

Inference = Literal["prefill", "decode", "generate"]
NewCache = Callable[[Any], DynamicCache | None]


class Cost(NamedTuple):
    """The cost of a run: of the prompts' forward, and of one decode step half way."""

    prompt: Work
    step: Work


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of the grid.

    Attributes:
        phase: what is timed.
        ids: [B, T], the prompts.
        new_tokens: decoded after the prompt; 0 in prefill.
        captured: whether decoding runs as a CUDA graph.
    """

    phase: Inference
    ids: Tensor
    new_tokens: int
    captured: bool = False

    def task(self, model: Any, new_cache: NewCache = lambda _: None) -> Task:
        """Make the run of one model; random routes are the same in every run.

        For decode the cache is filled here, once, under the current rule: the one that `new_cache`
        makes, or the model's own where that returns None.
        """
        if self.captured:
            return _replayed(model, self.ids, self.new_tokens)
        if self.phase == "decode":
            filled = _filled(model, self.ids, new_cache(model))

            def copied() -> tuple[Any, Tensor]:
                seeded()
                return copy.deepcopy(filled)  # each run adds to it

            return Task(lambda given: self._decode(model, given), copied)
        run = self._prefill if self.phase == "prefill" else self._generate
        return Task(lambda _: run(model, new_cache(model)), seeded)

    @property
    def prompt(self) -> Forward:
        """The forward of the prompts."""
        return Forward(*self.ids.shape)

    @property
    def between(self) -> Forward:
        """The decode step half way through decoding."""
        return Forward(len(self.ids), 1, self.ids.shape[1] + self.new_tokens // 2)

    def parts(self, steps: Sequence[Step]) -> tuple[Sequence[Step], Sequence[Step]]:
        """Divide the steps of a run into those of the prompt, which come first, and of decoding."""
        cut = {"prefill": len(steps), "decode": 0, "generate": 1}[self.phase]
        return steps[:cut], steps[cut:]

    def cost(self, model: Any, steps: Sequence[Step] | None = None) -> Cost:
        """Compute a run's cost from its decisions, those of the prompt first; dense where None."""
        prompt, rest = (
            keep_and_union(each) if each else (None, None) for each in self.parts(steps or ())
        )
        return Cost(work(model, self.prompt, *prompt), work(model, self.between, *rest))

    def ideal(self, dense: Cost, run: Cost, prefill_share: float) -> float:
        """Return the ideal speed-up of a run over dense, from the costs of both.

        Prefill is bound by FLOPs, decoding by the bytes that are read; `generate` by both, where
        `prefill_share` is the share of its dense seconds that prefill takes.
        """
        shares = {"prefill": 1.0, "decode": 0.0, "generate": prefill_share}
        first = dense.prompt.flops / run.prompt.flops
        rest = dense.step.bytes / run.step.bytes
        share = shares[self.phase]
        return 1 / (share / first + (1 - share) / rest)

    def flops(self, cost: Cost) -> float:
        """FLOPs of the whole run."""
        # The prompt gives the first token of `generate`.
        steps = self.new_tokens - (self.phase == "generate")
        decoding = steps * cost.step.flops
        return decoding if self.phase == "decode" else cost.prompt.flops + decoding

    def _prefill(self, model: Any, cache: Any) -> None:
        model(input_ids=self.ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def _decode(self, model: Any, given: tuple[Any, Tensor]) -> None:
        cache, token = given
        for _ in range(self.new_tokens):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)

    def _generate(self, model: Any, cache: Any) -> None:
        own = {} if cache is None else {"past_key_values": cache}
        # Commands and servers count what runs.
        with count_routing(model) if routed_layers(model) else nullcontext():
            # Without ends, no token ends it early.
            continue_ids(model, self.ids, Ends(()), max_new_tokens=self.new_tokens, **own)


def growing_cache(model: Any) -> DynamicCache:
    """The cache that routed models use, for one without routers."""
    cache = DynamicCache(config=model.config)
    make_room(cache)
    return cache


def launched(cell: Cell, model: Any) -> Task:
    """Make the same run without a CUDA graph, whose replay records nothing."""
    return dataclasses.replace(cell, captured=False).task(model)


def traced(model: Any, task: Task) -> Trace:
    """Trace one run; all runs have the same seed and so the same decisions."""
    given = task.prepare()
    with record_routing(model) as trace:
        task.run(given)
    return trace


def union_sparsity(trace: Trace) -> float:
    """Share of (forward, module) pairs that no token of the forward ran."""
    ran = keep_and_union(trace.steps)[1]
    return 1 - sum(ran.values()) / len(ran)


def keep_and_union(steps: Sequence[Step]) -> tuple[dict[Site, float], dict[Site, float]]:
    """Share of tokens that ran each site, and share of forwards in which some token did."""
    keep: dict[Site, float] = {}
    ran: dict[Site, float] = {}
    for site in (Site(layer, module) for layer in steps[0].decisions for module in MODULES):
        kept = [getattr(step.decisions[site.layer], site.module).keep.float() for step in steps]
        keep[site] = fmean(each.mean().item() for each in kept)
        ran[site] = fmean(each.max().item() for each in kept)
    return keep, ran


def _replayed(model: Any, ids: Tensor, new_tokens: int) -> Task:
    """Make a task that replays decode steps as a CUDA graph, from the end of the prompt."""
    seeded()
    decode = StaticDecode(model, ids, new_tokens)
    step = captured(decode)

    def prepare() -> None:
        seeded()
        decode.reset()

    def run() -> None:
        for _ in range(new_tokens):
            step()

    return Task(lambda _: run(), prepare)


def _filled(model: Any, ids: Tensor, cache: Any) -> tuple[Any, Tensor]:
    """Prefill the prompt; return its cache and the next token."""
    seeded()
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.past_key_values, output.logits[:, -1:].argmax(-1)
