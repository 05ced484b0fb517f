"""The training phases of the benchmark: one optimizer step of each stage.

A step is that of `train`: forward, loss, backward, clipping, optimizer. The batch has the size
and length of the grid; every token is a label.

lora_step      the healing step, routed, against the same LoRA on the dense model
router_step    the routers' step, always gated, against the same dense LoRA step: on the dense model
               there are no routers to train, and LoRA is what one would train there
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from skipgpt.benchmark.executions import Timed
from skipgpt.benchmark.reference_runs import compiled, static_depth
from skipgpt.benchmark.subject import Subject, sharing
from skipgpt.benchmark.timing.auto_trace import AsRun, traced_as_run
from skipgpt.benchmark.timing.candidate import (
    Candidate,
    Candidates,
    NotApplicable,
    make_candidates,
    seeded,
)
from skipgpt.benchmark.timing.clock import Task
from skipgpt.benchmark.timing.phases import keep_and_union, traced, union_sparsity
from skipgpt.config import Stage, recipe
from skipgpt.config.settings import override
from skipgpt.cost import Forward, lora_flops, training_flops, work
from skipgpt.model.state import Execution
from skipgpt.model.trace import Step, Trace
from skipgpt.routing.decision import MODULES, DecisionRule, Forced, GumbelSample, Site
from skipgpt.training.loop.single_step import single_step
from skipgpt.training.stages import prepare

Training = Literal["router_step", "lora_step"]
CONFIG = override(recipe("default"), {"router_stage.distill": 0, "lora_stage.distill": 0})
"""By the loss on text: dense has no teacher, whose forward no skipping changes."""


@dataclass(frozen=True, eq=False)
class StepCell:
    """One cell of the grid: a batch of ids [B, T]."""

    phase: Training
    ids: Tensor

    @property
    def forward(self) -> Forward:
        """The shape of the forward."""
        batch, tokens = self.ids.shape
        return Forward(batch, tokens, logits=tokens)

    def task(self, model: Any, stage: Stage = "lora", kind: Execution | None = None) -> Task:
        """Make the training step of one model; LoRA init and draws are seeded alike in all."""
        seeded()
        step = single_step(model, stage, CONFIG, self.ids, kind)
        return Task(lambda _: step(), seeded)


def candidates(
    subject: Subject, cell: StepCell, rule: DecisionRule, executions: Collection[Timed]
) -> Candidates:
    """Make the dense task and the candidates of one cell."""
    model = sharing(subject.dense)
    task, forward = cell.task(model), cell.forward
    dense = training_flops(subject.routed, forward, None, lora=lora_flops(model, forward))
    if cell.phase == "router_step":
        return Candidates(task, (_routers(subject, cell, dense),))
    trace = _traced_forward(subject, cell, rule)

    def make(kind: Timed) -> Candidate:
        if kind == "compiled":
            return compiled(cell.task, prepare(sharing(subject.dense), "lora", CONFIG))
        if kind == "static":
            return _static(subject, cell, trace, dense)
        if kind == "dense-int8" or kind == "sparse-int8":
            raise NotApplicable("8-bit layers have no gradient")
        if kind == "transformers":
            raise NotApplicable("training uses no cache")
        return _healing(subject, cell, trace, kind, dense)

    return Candidates(task, *make_candidates(make, executions))


@torch.no_grad()
def _traced_forward(subject: Subject, cell: StepCell, rule: DecisionRule) -> Trace:
    """Trace a forward; steps are forced to its routes, which LoRA and dropout would change."""
    model = subject.executing("sparse", rule)
    return traced(model, _forward(model, cell))


def _forward(model: Any, cell: StepCell) -> Task:
    return Task(lambda _: model(input_ids=cell.ids, use_cache=False), seeded)


def _healing(
    subject: Subject,
    cell: StepCell,
    trace: Trace,
    kind: Literal["auto", "sparse", "gated"],
    dense: float,
) -> Candidate:
    decisions = trace.steps[0].decisions
    kept = {Site(n, m): getattr(decisions[n], m).keep for n in decisions for m in MODULES}
    model = subject.executing(kind, Forced(kept), trains=True)
    run = AsRun(trace.steps, float(kind == "sparse"))
    if kind == "auto":  # in a training forward, so without kernels; LoRA is added later
        run = traced_as_run(model.train(), _forward(model, cell))[1]
    task = cell.task(model, "lora", kind)
    least, spent = (_flops(model, cell.forward, steps) for steps in (trace.steps, run.steps))
    return Candidate(
        kind,
        task,
        trace.sparsity(),
        union_sparsity(trace),
        1.0 if kind == "gated" else spent / dense,
        lambda _: dense / least,
        packed_share=run.packed_share,
    )


def _flops(model: Any, forward: Forward, steps: Sequence[Step]) -> float:
    keep, _ = keep_and_union(steps)
    return training_flops(model, forward, "lora", keep, lora_flops(model, forward, keep))


def _routers(subject: Subject, cell: StepCell, dense: float) -> Candidate:
    rule = GumbelSample(CONFIG.router_stage.temperature_start)
    trace = _traced_forward(subject, cell, rule)
    model = subject.executing("gated", rule, trains=True)
    run = training_flops(model, cell.forward, "router")
    return Candidate(
        "gated",
        cell.task(model, "router"),
        trace.sparsity(),
        union_sparsity(trace),
        run / dense,
        lambda _: dense / run,
        "in router_step routers decide by Gumbel samples and every token runs every module, "
        "whatever sparsity is asked for; dense is the LoRA step",
        packed_share=0.0,
    )


def _static(subject: Subject, cell: StepCell, trace: Trace, dense: float) -> Candidate:
    forward = cell.forward
    keep, _ = keep_and_union(trace.steps)
    static = static_depth(subject, forward, work(subject.routed, forward, keep))
    task = cell.task(static.model)
    lora = lora_flops(static.model, forward)
    run = training_flops(static.counted, forward, None, lora=lora)
    return Candidate(
        "static",
        task,
        static.sparsity,
        static.sparsity,
        run / dense,
        lambda _: dense / run,
        static.note,
    )
