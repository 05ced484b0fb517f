"""Trace what execution `auto` ran in each module: kept tokens only, or every token.

Where packing does not pay, a module runs every token and spends FLOPs that its routes would save.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.benchmark.timing.clock import Task
from skipgpt.model.packing_cost import PackingCost
from skipgpt.model.state import record_routing
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import Step, Trace
from skipgpt.routing.decision import MODULES, Module
from skipgpt.system.device_profile import Machine

Whole = dict[int, list[set[Module]]]
"""Per layer and forward, the modules for which packing did not pay."""


@dataclass(frozen=True, eq=False)
class AsRun:
    """How decisions were executed.

    Attributes:
        steps: the decisions, with all tokens kept where a module ran every token.
        packed_share: among module runs in which some tokens kept and others skipped, the share
            that ran kept tokens only; 1 where there are none.
    """

    steps: list[Step]
    packed_share: float


def traced_as_run(model: Any, task: Task) -> tuple[Trace, AsRun]:
    """Trace the decisions of one run in `auto` or `sparse`, and how they were executed."""
    given = task.prepare()
    with record_routing(model) as trace, _watched(model) as whole:
        task.run(given)
    return trace, as_run(trace.steps, whole)


def as_run(steps: Sequence[Step], whole: Whole) -> AsRun:
    """Combine decisions, one step per forward, with the modules that ran every token in it."""
    made, packed = [], []
    for number, step in enumerate(steps):
        decisions = {}
        for index, decision in step.decisions.items():
            ran = {module: getattr(decision, module) for module in MODULES}
            for module, each in ran.items():
                is_whole = module in whole[index][number]
                if is_whole or each.keep.any() != each.keep.all():
                    packed.append(not is_whole)
                if is_whole:
                    ran[module] = dataclasses.replace(each, keep=torch.ones_like(each.keep))
            decisions[index] = dataclasses.replace(decision, **ran)
        made.append(dataclasses.replace(step, decisions=decisions))
    return AsRun(made, sum(packed) / len(packed) if packed else 1.0)


class _Watched:
    """Wraps a layer's packing cost and records its answers."""

    def __init__(self, packing: PackingCost) -> None:
        self.forwards: list[set[Module]] = []
        self._packing = packing

    def begin(self, *_: Any) -> None:
        """Start a forward of the layer; a forward pre-hook."""
        self.forwards.append(set())

    def is_worth_packing(self, machine: Machine, module: Module, *given: Any) -> bool:
        """Return whether packing pays; called only where a layer has the choice."""
        answer = self._packing.is_worth_packing(machine, module, *given)
        if not answer:
            self.forwards[-1].add(module)
        return answer


@contextmanager
def _watched(model: Any) -> Iterator[Whole]:
    """Record, per forward, which modules run every token."""
    watched: dict[Any, _Watched] = {each: _Watched(each.packing) for each in routed_layers(model)}
    with ExitStack() as stack:
        for layer, watching in watched.items():
            stack.callback(setattr, layer, "packing", layer.packing)
            layer.packing = watching
            stack.enter_context(layer.register_forward_pre_hook(watching.begin))
        yield {layer.index: watching.forwards for layer, watching in watched.items()}
