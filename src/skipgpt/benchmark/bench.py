"""Run the grid of phases, batch sizes, prompt lengths and sparsities, dense and routed in turn."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from skipgpt.benchmark import inference, steps
from skipgpt.benchmark.executions import UNROUTED, Timed
from skipgpt.benchmark.grid import Grid, PhaseName
from skipgpt.benchmark.result import Benchmark, Row
from skipgpt.benchmark.steps import StepCell, Training
from skipgpt.benchmark.subject import Subject
from skipgpt.benchmark.timing.candidate import Candidates
from skipgpt.benchmark.timing.clock import alternate, is_out_of_memory, peak_memory
from skipgpt.benchmark.timing.cuda_graph import can_capture
from skipgpt.benchmark.timing.phases import Cell
from skipgpt.config import Budget
from skipgpt.errors import ConfigError
from skipgpt.model.loading.limits import check_length, context_of
from skipgpt.system.device_profile import stored_profile, typical
from skipgpt.system.hardware import hardware
from skipgpt.system.progress import Phase, advancing

logger = logging.getLogger("skipgpt")

PREFILL = "dense prefill"
"""Timed beside `generate`, whose ideal depends on the share of dense time that prefill takes."""


@dataclass(frozen=True, eq=False)
class _Point:
    """A cell of the grid at one sparsity.

    Attributes:
        phase: what is timed.
        ids: [B, T], the prompts, or the sequences of a training step.
        new_tokens: decoded after the prompt.
        sparsity: the share to save.
        budget: its unit.
        captured: whether decoding runs as a CUDA graph.
    """

    phase: PhaseName
    ids: Tensor
    new_tokens: int
    sparsity: float
    budget: Budget
    captured: bool


def bench(subject: Subject, grid: Grid | None = None) -> Benchmark:
    """Time dense and routed runs of every cell, alternating.

    The default grid is timed where `grid` is None.

    Returns:
        One row per cell, sparsity and execution; of runs that no sparsity changes (`router_step`
        and the executions in `UNROUTED`), one per batch size and length.

    Raises:
        ConfigError: a sparsity beyond the calibration curve, a unit that the subject does not know,
            or more tokens than the context holds.
        DataError: too little text for the prompts.

    Example:
        subject = subject_of_shape("llama-160m")
        print(bench(subject, Grid(sparsities=(0.4,))).to_terminal())
    """
    with advancing("timing", unit="cell") as advance:
        return _bench(subject, grid or Grid(), advance)


def _bench(subject: Subject, grid: Grid, advance: Phase) -> Benchmark:
    _check_context(subject, grid)
    budget = subject.unit(grid.budget)
    # Both models use graphs or neither does: a graph by itself speeds up decoding.
    graphs = can_capture(subject.dense) and can_capture(subject.routed)
    rows: list[Row] = []
    left_out: list[str] = []
    cells = list(itertools.product(grid.phases, grid.batch_sizes, grid.prompt_tokens))
    for number, (phase, batch, prompt) in enumerate(cells):
        advance(number, len(cells))
        advance.tell(f"{phase}, batch {batch}, prompt {prompt}")
        ids, new = subject.prompts(batch, prompt), _new_tokens(phase, grid)
        given = grid.sparsities or subject.sparsities
        points = [_Point(phase, ids, new, each, budget, graphs) for each in given]
        found, sentences = _at_each_sparsity(subject, points, grid)
        rows += found
        left_out += [each for each in sentences if each not in left_out]
    return Benchmark(tuple(rows), _facts(subject, grid, graphs), tuple(left_out))


def _check_context(subject: Subject, grid: Grid) -> None:
    most = max(_new_tokens(phase, grid) for phase in grid.phases)
    context = context_of(subject.dense)
    for prompt in grid.prompt_tokens:
        try:
            check_length("timing", context, prompt, most)
        except ConfigError as error:
            room = (context or 0) - most
            fits = f"give --prompt-tokens {room} (prompt_tokens=) or fewer"
            raise error.advising(fits if room > 0 else "give fewer --decode-tokens") from error


def _new_tokens(phase: PhaseName, grid: Grid) -> int:
    return 0 if phase in ("prefill", *get_args(Training)) else grid.decode_tokens


def _facts(subject: Subject, grid: Grid, graphs: bool) -> dict[str, Any]:
    profile = stored_profile(subject.device, subject.dense.dtype)
    return {
        "date": datetime.date.today().isoformat(),
        "subject": subject.name,
        **({"base": subject.base} if subject.base else {}),
        "routes": "learned" if subject.learned else "random",
        "dtype": str(subject.dense.dtype).removeprefix("torch."),
        "attention": subject.dense.config._attn_implementation,
        "repeats": grid.repeats,
        "decode": "as a CUDA graph" if graphs else "launched by the host",
        "machine": {  # the figures that `auto` uses
            "source": "measured by skipgpt profile" if profile else "typical",
            **dataclasses.asdict(profile or typical(subject.device)),
        },
        **hardware(subject.device),
    }


def _at_each_sparsity(
    subject: Subject, points: Sequence[_Point], grid: Grid
) -> tuple[list[Row], list[str]]:
    """Time one cell; runs that no sparsity changes are timed at the first one that fits."""
    rows: list[Row] = []
    left_out: list[str] = []
    too_large: list[_Point] = []
    first = points[0]
    executions, timed = grid.executions, set[str]()
    for point in points[:1] if first.phase == "router_step" else points:
        if not executions:
            break
        try:
            found, sentences = _at(subject, point, executions, grid.repeats)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            too_large.append(point)
            continue
        # `dense-int8` runs beside `sparse-int8` at every sparsity, as dense does.
        new = [row for row in found if row.execution not in timed]
        for row in new:
            _log(row)
        rows += new
        left_out += sentences
        executions = tuple(each for each in executions if each not in UNROUTED)
        timed |= UNROUTED & {row.execution for row in found}
    if too_large:
        at = ", ".join(f"{100 * each.sparsity:g}%" for each in too_large)
        at = "" if first.phase == "router_step" else f" at {at}"
        cell = f"{first.phase} of {first.ids.shape[0]} x {first.ids.shape[1]}"
        left_out.append(f"{cell}{at} is left out: out of memory.")
        logger.warning("%s", left_out[-1])
    return rows, left_out


def _log(row: Row) -> None:
    logger.info(
        "%s, batch %d, prompt %d, %.0f %%: %s %.2fx of %.2fx",
        *(row.phase, row.batch_size, row.prompt_tokens, 100 * row.sparsity),
        *(row.execution, row.speedup, row.ideal_speedup),
    )


def _at(
    subject: Subject, point: _Point, executions: Sequence[Timed], repeats: int
) -> tuple[list[Row], tuple[str, ...]]:
    """Time one cell at one sparsity; its models and caches are freed at the end."""
    with torch.set_grad_enabled(point.phase in get_args(Training)):
        candidates = _candidates(subject, point, executions)
        return list(_rows(subject, candidates, point, repeats)), candidates.left_out


def _candidates(subject: Subject, point: _Point, executions: Sequence[Timed]) -> Candidates:
    rule, phase = subject.rule(point.sparsity, point.budget), point.phase
    if phase == "router_step" or phase == "lora_step":
        return steps.candidates(subject, StepCell(phase, point.ids), rule, executions)
    captured = point.captured and phase == "decode"
    cell = Cell(phase, point.ids, point.new_tokens, captured)
    return inference.candidates(subject, cell, rule, executions)


def _rows(subject: Subject, candidates: Candidates, point: _Point, repeats: int) -> Iterator[Row]:
    """Yield a row for each candidate of one cell, all timed in the same rounds."""
    tasks = {"dense": candidates.dense}
    tasks |= {each.execution: each.task for each in candidates.candidates}
    if candidates.prefill:
        tasks[PREFILL] = candidates.prefill
    seconds = alternate(tasks, repeats, subject.device)
    memory = {name: peak_memory(task, subject.device) for name, task in tasks.items()}
    dense = statistics.median(seconds["dense"])
    share = statistics.median(seconds.get(PREFILL, [0.0])) / dense
    (batch, prompt), new = point.ids.shape, point.new_tokens
    for each in candidates.candidates:
        own = seconds[each.execution]
        ratios = _ratios(seconds["dense"], own)
        before = seconds[each.on_top_of or "dense"]
        gated = None if each.execution == "gated" else seconds.get("gated")
        int8 = statistics.median(_ratios(seconds["dense"], before))
        ideal = int8 * each.ideal(min(share, 1.0))
        speedup, median = statistics.median(ratios), statistics.median(own)
        routed = point.phase != "router_step" and each.execution not in UNROUTED
        yield Row(
            phase=point.phase,
            batch_size=batch,
            prompt_tokens=prompt,
            new_tokens=new,
            execution=each.execution,
            asked=point.sparsity if routed else None,
            budget=point.budget if routed else None,
            sparsity=each.sparsity,
            union_sparsity=each.union_sparsity,
            flops_share=each.flops_share,
            packed_share=each.packed_share,
            dense_seconds=dense,
            sparse_seconds=median,
            speedup=speedup,
            speedup_range=_quartiles(ratios),
            int8_speedup=int8,
            ideal_speedup=ideal,
            efficiency=speedup / ideal,
            over_gated=statistics.median(_ratios(gated, own)) if gated else None,
            tokens_per_second=batch * (new or prompt) / median,
            peak_memory_bytes=memory[each.execution],
            dense_peak_memory_bytes=memory["dense"],
            note=each.note,
        )


def _ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Speed-up of the second over the first, per round."""
    return [a / b for a, b in zip(first, second, strict=True)]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
