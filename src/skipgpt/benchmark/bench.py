"""The grid: every phase, batch size, prompt length and sparsity, dense and sparse in turn."""

from __future__ import annotations

import datetime
import itertools
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from skipgpt.benchmark import inference, steps
from skipgpt.benchmark.captured import can_capture
from skipgpt.benchmark.clock import alternate
from skipgpt.benchmark.contender import Field, Timed
from skipgpt.benchmark.memory import is_out_of_memory, peak_memory
from skipgpt.benchmark.phases import Cell, Inference
from skipgpt.benchmark.result import Benchmark, Row
from skipgpt.benchmark.steps import StepCell, Training
from skipgpt.benchmark.subject import Subject
from skipgpt.config import check_sparsity
from skipgpt.errors import ConfigError
from skipgpt.hardware import hardware

logger = logging.getLogger("skipgpt")

PhaseName = Literal["prefill", "decode", "generate", "router_step", "lora_step"]
PREFILL = "dense prefill"
"""Timed beside `generate`, whose ideal depends on how the dense seconds divide."""


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        phases: prefill, decode, generate, router_step, lora_step.
        batch_sizes: sequences.
        prompt_tokens: lengths of the prompt, which is in the cache when decoding starts, or of the
            sequences of a training step.
        decode_tokens: tokens decoded after it.
        sparsities: shares of modules to skip.
        executions: auto and sparse, and rivals beside them: gated (the authors' way of running),
            static (a model of fewer layers with the same FLOPs), compiled (dense by
            `torch.compile`); sparse-int8 in 8-bit weights, which brings dense-int8 with it.
        repeats: rounds that count.
    """

    phases: tuple[PhaseName, ...] = ("prefill", "decode")
    batch_sizes: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (512,)
    decode_tokens: int = 16
    sparsities: tuple[float, ...] = (0.25, 0.4)
    executions: tuple[Timed, ...] = ("sparse",)
    repeats: int = 7

    def __post_init__(self) -> None:
        for name, values, known in (
            ("phases", self.phases, get_args(PhaseName)),
            ("executions", self.executions, get_args(Timed)),
        ):
            if unknown := [value for value in values if value not in known]:
                raise ConfigError(
                    f"reading {name}", got=repr(unknown[0]), expected="one of " + ", ".join(known)
                )
        for sparsity in self.sparsities:
            check_sparsity(sparsity)
        counts = {
            "batch sizes": self.batch_sizes,
            "prompt tokens": self.prompt_tokens,
            "decode tokens": (self.decode_tokens,),
            "repeats": (self.repeats,),
        }
        for name, numbers in counts.items():
            if min(numbers, default=0) < 1:
                raise ConfigError(
                    f"reading {name}", got=str(min(numbers, default="none")), expected="1 or more"
                )


def bench(subject: Subject, grid: Grid | None = None) -> Benchmark:
    """Time dense and routed runs of every cell, alternating.

    Args:
        subject: what is measured.
        grid: where.

    Returns:
        A row for every cell and execution. Of `router_step`, which no sparsity changes, one for
        every batch size and length.

    Raises:
        ConfigError: a sparsity that the checkpoint does not reach.
        DataError: too little text for the prompts.

    Example:
        subject = subject_of_shape("llama-160m")
        print(bench(subject, Grid(sparsities=(0.4,))).to_terminal())
    """
    grid = grid or Grid()
    rows: list[Row] = []
    left_out: list[str] = []
    # On both sides or on none: a graph alone speeds up decoding.
    graphs = can_capture(subject.dense) and can_capture(subject.routed)
    for phase, batch, prompt in itertools.product(
        grid.phases, grid.batch_sizes, grid.prompt_tokens
    ):
        ids = subject.prompts(batch, prompt)
        new = 0 if phase in ("prefill", *get_args(Training)) else grid.decode_tokens
        sparsities = grid.sparsities[:1] if phase == "router_step" else grid.sparsities
        for sparsity in sparsities:
            try:
                with torch.inference_mode(phase in get_args(Inference)):
                    field = _field(subject, phase, ids, new, sparsity, grid, graphs)
                    measured = list(_rows(subject, field, phase, ids, new, grid))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                left_out.append(f"{phase} of {batch} x {prompt} is left out: out of memory.")
                continue
            left_out += [each for each in field.left_out if each not in left_out]
            for row in measured:
                logger.info(
                    "%s, batch %d, prompt %d, %.0f %%: %s %.2fx of %.2fx",
                    *(phase, batch, prompt, 100 * row.sparsity),
                    *(row.execution, row.speedup, row.ideal_speedup),
                )
            rows += measured
    facts = {
        "date": datetime.date.today().isoformat(),
        "subject": subject.name,
        "routes": "learned" if subject.learned else "random",
        "dtype": str(subject.dense.dtype).removeprefix("torch."),
        "attention": subject.dense.config._attn_implementation,
        "repeats": grid.repeats,
        "decode": "as a CUDA graph" if graphs else "launched by the host",
        **hardware(subject.device),
    }
    return Benchmark(tuple(rows), facts, tuple(left_out))


def _field(
    subject: Subject,
    phase: PhaseName,
    ids: Tensor,
    new: int,
    sparsity: float,
    grid: Grid,
    graphs: bool,
) -> Field:
    rule = subject.rule(sparsity)
    if phase == "router_step" or phase == "lora_step":
        return steps.field(subject, StepCell(phase, ids), rule, grid.executions)
    cell = Cell(phase, ids, new, captured=graphs and phase == "decode")
    return inference.field(subject, cell, rule, grid.executions)


def _rows(
    subject: Subject, field: Field, phase: PhaseName, ids: Tensor, new: int, grid: Grid
) -> Iterator[Row]:
    """A row for each contender of one cell, all timed in the same rounds."""
    tasks = {"dense": field.dense} | {each.execution: each.task for each in field.contenders}
    if field.prefill:
        tasks[PREFILL] = field.prefill
    seconds = alternate(tasks, grid.repeats, subject.device)
    memory = {name: peak_memory(task, subject.device) for name, task in tasks.items()}
    dense = statistics.median(seconds["dense"])
    share = statistics.median(seconds.get(PREFILL, [0.0])) / dense
    for each in field.contenders:
        own = seconds[each.execution]
        ratios = _ratios(seconds["dense"], own)
        before = seconds[each.on_top_of or "dense"]
        int8 = statistics.median(_ratios(seconds["dense"], before))
        ideal = int8 * each.ideal(min(share, 1.0))
        speedup, median = statistics.median(ratios), statistics.median(own)
        yield Row(
            phase=phase,
            batch_size=len(ids),
            prompt_tokens=ids.shape[1],
            new_tokens=new,
            execution=each.execution,
            sparsity=each.sparsity,
            union_sparsity=each.union_sparsity,
            flops_share=each.flops_share,
            dense_seconds=dense,
            sparse_seconds=median,
            speedup=speedup,
            speedup_range=_quartiles(ratios),
            int8_speedup=int8,
            ideal_speedup=ideal,
            efficiency=speedup / ideal,
            tokens_per_second=len(ids) * (new or ids.shape[1]) / median,
            peak_memory_bytes=memory[each.execution],
            dense_peak_memory_bytes=memory["dense"],
            note=each.note,
        )


def _ratios(dense: Sequence[float], other: Sequence[float]) -> list[float]:
    """How much faster the other was, round by round."""
    return [a / b for a, b in zip(dense, other, strict=True)]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
