"""What is timed in one cell of the grid: dense, and everything that is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.benchmark.executions import Timed
from skipgpt.benchmark.timing.clock import Task


@dataclass(frozen=True, eq=False)
class Candidate:
    """A run that is timed beside dense; by default it skips nothing.

    Attributes:
        execution: its execution, or the name of a reference run.
        task: what is timed.
        sparsity: share of modules that it skips or lacks.
        union_sparsity: share of (forward, module) pairs that no token of the forward ran.
        flops_share: its FLOPs over those of dense; a module that ran every token counts in full.
        ideal: maps the share of dense seconds that prefill takes to its ideal speed-up.
        note: remarks.
        packed_share: as in `AsRun`; None where there are no routes.
        on_top_of: the candidate that `ideal` is relative to; dense where None.
    """

    execution: Timed
    task: Task
    sparsity: float = 0.0
    union_sparsity: float = 0.0
    flops_share: float = 1.0
    ideal: Callable[[float], float] = lambda _: 1.0
    note: str = ""
    packed_share: float | None = None
    on_top_of: Timed | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """All runs of one cell.

    Attributes:
        dense: the dense run.
        candidates: the runs compared with dense.
        left_out: a sentence for each run that is not possible.
        prefill: dense prefill, where its share of the dense seconds is needed.
    """

    dense: Task
    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...] = ()
    prefill: Task | None = None


class NotApplicable(Exception):  # noqa: N818 - the rest goes on without it
    """Says in a sentence why a candidate cannot run here."""


def make_candidates(
    make: Callable[[Timed], Candidate], executions: Collection[Timed]
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Make the candidates that can run, and a sentence for each that cannot."""
    candidates, left_out = [], []
    for kind in executions:
        try:
            candidates.append(make(kind))
        except NotApplicable as reason:
            left_out.append(f"{kind} is left out: {reason}.")
    return tuple(candidates), tuple(left_out)


def seeded(_: Any = None) -> None:
    """Seed torch before a run, so that all runs draw the same routes."""
    torch.manual_seed(0)
