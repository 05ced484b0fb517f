"""Candidates of the inference phases: dense, the routed model, and reference runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

from skipgpt.benchmark.executions import Timed
from skipgpt.benchmark.reference_runs import compiled, static_depth
from skipgpt.benchmark.subject import InInt8, Subject, sharing
from skipgpt.benchmark.timing.auto_trace import traced_as_run
from skipgpt.benchmark.timing.candidate import (
    Candidate,
    Candidates,
    NotApplicable,
    make_candidates,
)
from skipgpt.benchmark.timing.phases import (
    Cell,
    Cost,
    growing_cache,
    keep_and_union,
    launched,
    traced,
    union_sparsity,
)
from skipgpt.cost import work
from skipgpt.errors import SkipGPTError
from skipgpt.routing.decision import DecisionRule

_OWN_CACHE = "dense with the cache of transformers, which copies all keys for each new token"


def candidates(
    subject: Subject, cell: Cell, rule: DecisionRule, executions: Collection[Timed]
) -> Candidates:
    """Make the dense task and the candidates of one cell."""
    dense = cell.cost(subject.routed)

    def make(kind: Timed) -> Candidate:
        if kind == "compiled":
            return compiled(cell.task, sharing(subject.dense))
        if kind == "transformers":
            if cell.captured:
                raise NotApplicable("a CUDA graph runs every model on a static cache")
            return Candidate(kind, cell.task(subject.dense), note=_OWN_CACHE)
        if kind == "static":
            return _static(subject, cell, rule, dense)
        if kind == "dense-int8" or kind == "sparse-int8":
            return _in_int8(subject, cell, rule, kind)
        return _routed(subject, cell, rule, kind, dense)

    prefill = Cell("prefill", cell.ids, 0) if cell.phase == "generate" else None
    beside: tuple[Timed, ...] = ("dense-int8",) if "sparse-int8" in executions else ()
    candidates, left_out = make_candidates(make, dict.fromkeys((*beside, *executions)))
    return Candidates(
        cell.task(subject.dense, growing_cache),
        candidates,
        left_out,
        prefill.task(subject.dense, growing_cache) if prefill else None,
    )


def _routed(
    subject: Subject,
    cell: Cell,
    rule: DecisionRule,
    kind: Literal["auto", "sparse", "gated", "sparse-int8"],
    dense: Cost,
) -> Candidate:
    model = subject.executing(kind, rule)
    task = cell.task(model)
    trace, run = traced_as_run(model, launched(cell, model) if cell.captured else task)
    cost = cell.cost(model, trace.steps)
    spent = cell.flops(cell.cost(model, run.steps))
    return Candidate(
        kind,
        task,
        trace.sparsity(),
        union_sparsity(trace),
        1.0 if kind == "gated" else spent / cell.flops(dense),
        lambda share: cell.ideal(dense, cost, share),
        packed_share=0.0 if kind == "gated" else run.packed_share,
    )


def _in_int8(subject: Subject, cell: Cell, rule: DecisionRule, kind: InInt8) -> Candidate:
    """Make an 8-bit candidate; the ideal of `sparse-int8` is relative to `dense-int8`."""
    try:
        quantized = subject.in_int8
    except SkipGPTError as error:
        raise NotApplicable(str(error)) from error
    if kind == "sparse-int8":
        made = _routed(subject, cell, rule, kind, cell.cost(quantized))
    else:
        made = Candidate(kind, cell.task(subject.executing(kind, rule)))
    return dataclasses.replace(made, on_top_of="dense-int8")


def _static(subject: Subject, cell: Cell, rule: DecisionRule, dense: Cost) -> Candidate:
    model = subject.executing("sparse", rule)
    prompt, rest = cell.parts(traced(model, launched(cell, model)).steps)
    forward = cell.prompt if prompt else cell.between
    keep, _ = keep_and_union(prompt or rest)
    static = static_depth(subject, forward, work(subject.routed, forward, keep))
    cost = cell.cost(static.counted)
    return Candidate(
        "static",
        cell.task(static.model, growing_cache),
        static.sparsity,
        static.sparsity,
        cell.flops(cost) / cell.flops(dense),
        lambda share: cell.ideal(dense, cost, share),
        static.note,
    )
