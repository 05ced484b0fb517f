"""What is timed in one cell of the grid: dense, and everything that is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch

from skipgpt.benchmark.timing.clock import Task

Timed = Literal["auto", "sparse", "gated", "static", "compiled", "dense-int8", "sparse-int8"]
"""Ways to run the routed model, rivals, and both dense and sparse in 8-bit weights."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One that is timed beside dense.

    Attributes:
        execution: what it is.
        task: its run.
        sparsity: share of modules that it skips or lacks.
        union_sparsity: share of (forward, module) pairs that no token of the forward ran.
        flops_share: FLOPs that it runs over those of dense, of modules that ran every token all.
        ideal: the speed-up that it can give at best, from the share of the dense seconds that
            prefill takes.
        note: what else is to be known of it.
        packed_share: of the module runs in which some tokens kept and others skipped, the share
            in which only those that kept ran; None where there are no routes.
        on_top_of: the contender whose gain comes first; its ideal is beyond that.
    """

    execution: Timed
    task: Task
    sparsity: float
    union_sparsity: float
    flops_share: float
    ideal: Callable[[float], float]
    note: str = ""
    packed_share: float | None = None
    on_top_of: Timed | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """All that take part in one cell.

    Attributes:
        dense: what they are compared with.
        contenders: they.
        left_out: a sentence for each that cannot take part.
        prefill: dense prefill, where it has to be known how dense divides its time.
    """

    dense: Task
    contenders: tuple[Candidate, ...]
    left_out: tuple[str, ...] = ()
    prefill: Task | None = None


class NotApplicable(Exception):  # noqa: N818 - the rest goes on without it
    """Says in a sentence why a contender cannot take part here."""


def gathered(
    make: Callable[[Timed], Candidate], executions: Collection[Timed]
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The contenders that can take part, and a sentence for each that cannot."""
    contenders, left_out = [], []
    for kind in executions:
        try:
            contenders.append(make(kind))
        except NotApplicable as reason:
            left_out.append(f"{kind} is left out: {reason}.")
    return tuple(contenders), tuple(left_out)


def seeded(_: Any = None) -> None:
    """Before each run, so that all runs draw the same routes."""
    torch.manual_seed(0)
