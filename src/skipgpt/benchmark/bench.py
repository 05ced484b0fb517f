"""The grid: every phase, batch size, prompt length and sparsity, dense and sparse in turn."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from skipgpt.benchmark.captured import can_capture
from skipgpt.benchmark.clock import Task, alternate, peak_memory
from skipgpt.benchmark.phases import Cell, PhaseName, keep_and_union
from skipgpt.benchmark.result import Benchmark, Row
from skipgpt.benchmark.subject import Subject
from skipgpt.config import check_sparsity
from skipgpt.errors import ConfigError
from skipgpt.hardware import hardware
from skipgpt.model.trace import Trace, record_routing

logger = logging.getLogger("skipgpt")

Timed = Literal["sparse", "gated"]
PREFILL = "dense prefill"
"""Timed beside `generate`, whose ideal depends on how the dense seconds divide."""


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        phases: prefill, decode, generate.
        batch_sizes: sequences.
        prompt_tokens: lengths of the prompt, which is in the cache when decoding starts.
        decode_tokens: tokens decoded after it.
        sparsities: shares of modules to skip.
        executions: sparse, and gated if the authors' way of running shall stand beside it.
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


@torch.inference_mode()
def bench(subject: Subject, grid: Grid | None = None) -> Benchmark:
    """Time dense and routed runs of every cell, alternating.

    Args:
        subject: what is measured.
        grid: where.

    Returns:
        A row for every cell and execution.

    Raises:
        ConfigError: a sparsity that the checkpoint does not reach.
        DataError: too little text for the prompts.

    Example:
        subject = subject_of_shape("llama-160m")
        print(bench(subject, Grid(sparsities=(0.4,))).to_terminal())
    """
    grid = grid or Grid()
    rows: list[Row] = []
    # On both sides or on none: a graph alone speeds up decoding.
    graphs = can_capture(subject.dense) and can_capture(subject.routed)
    cells = itertools.product(grid.phases, grid.batch_sizes, grid.prompt_tokens, grid.sparsities)
    for phase, batch, prompt, sparsity in cells:
        cell = Cell(
            phase,
            subject.prompts(batch, prompt),
            0 if phase == "prefill" else grid.decode_tokens,
            captured=graphs and phase == "decode",
        )
        try:
            measured = list(_rows(subject, cell, sparsity, grid))
        except torch.OutOfMemoryError:
            logger.warning("%s, batch %d, prompt %d: out of memory, left out", phase, batch, prompt)
            continue
        for row in measured:
            logger.info(
                "%s, batch %d, prompt %d, %.0f %%: %s %.2fx of %.2fx",
                *(phase, batch, prompt, 100 * row.sparsity),
                *(row.execution, row.speedup, row.ideal_speedup),
            )
        rows += measured
    facts = {
        "subject": subject.name,
        "routes": "learned" if subject.learned else "random",
        "dtype": str(subject.dense.dtype).removeprefix("torch."),
        "attention": subject.dense.config._attn_implementation,
        "repeats": grid.repeats,
        "decode": "as a CUDA graph" if graphs else "launched by the host",
        **hardware(subject.device),
    }
    return Benchmark(tuple(rows), facts)


def _rows(subject: Subject, cell: Cell, sparsity: float, grid: Grid) -> Iterator[Row]:
    """A row for each execution of one cell, all timed in the same rounds."""
    rule = subject.rule(sparsity)
    models = {name: subject.executing(name, rule) for name in grid.executions}
    tasks = {"dense": cell.task(subject.dense)}
    tasks |= {name: cell.task(model) for name, model in models.items()}
    if cell.phase == "generate":
        tasks[PREFILL] = Cell("prefill", cell.ids, 0).task(subject.dense)
    seconds = alternate(tasks, grid.repeats, subject.device)
    memory = {name: peak_memory(task, subject.device) for name, task in tasks.items()}
    dense = statistics.median(seconds["dense"])
    share = statistics.median(seconds.get(PREFILL, [0.0])) / dense
    for name, model in models.items():
        # Where a graph is replayed, none of the model's own code runs and nothing is recorded.
        launched = dataclasses.replace(cell, captured=False)
        trace = _traced(model, launched.task(model) if cell.captured else tasks[name])
        _, ran = keep_and_union(trace.steps)
        ratios = [a / b for a, b in zip(seconds["dense"], seconds[name], strict=True)]
        ideal = cell.ideal(model, trace.steps, min(share, 1.0))
        speedup, median = statistics.median(ratios), statistics.median(seconds[name])
        yield Row(
            phase=cell.phase,
            batch_size=len(cell.ids),
            prompt_tokens=cell.ids.shape[1],
            new_tokens=cell.new_tokens,
            execution=name,
            sparsity=trace.sparsity(),
            union_sparsity=1 - statistics.mean(ran.values()),
            dense_seconds=dense,
            sparse_seconds=median,
            speedup=speedup,
            speedup_range=_quartiles(ratios),
            ideal_speedup=ideal,
            efficiency=speedup / ideal,
            tokens_per_second=len(cell.ids) * (cell.new_tokens or cell.ids.shape[1]) / median,
            peak_memory_bytes=memory[name],
            dense_peak_memory_bytes=memory["dense"],
        )


def _traced(model: Any, task: Task) -> Trace:
    """What was decided in one run; with the seed of every run, so in every run."""
    given = task.prepare()
    with record_routing(model) as trace:
        task.run(given)
    return trace


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
