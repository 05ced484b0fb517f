"""Run the grid of phases, batch sizes, prompt lengths and sparsities, dense and routed in turn."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import logging
import statistics
from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor

from skipgpt.benchmark import inference, steps
from skipgpt.benchmark.grid import Grid, PhaseName
from skipgpt.benchmark.result import Benchmark, Row
from skipgpt.benchmark.steps import StepCell, Training
from skipgpt.benchmark.subject import Subject
from skipgpt.benchmark.timing.candidate import Candidates
from skipgpt.benchmark.timing.clock import alternate, is_out_of_memory, peak_memory
from skipgpt.benchmark.timing.cuda_graph import can_capture
from skipgpt.benchmark.timing.phases import Cell
from skipgpt.errors import ConfigError
from skipgpt.model.loading.limits import check_length, context_of
from skipgpt.system.device_profile import stored_profile, typical
from skipgpt.system.hardware import hardware
from skipgpt.system.progress import Phase, advancing

logger = logging.getLogger("skipgpt")

PREFILL = "dense prefill"
"""Timed beside `generate`, whose ideal depends on the share of dense time that prefill takes."""


def bench(subject: Subject, grid: Grid | None = None) -> Benchmark:
    """Time dense and routed runs of every cell, alternating.

    The default grid is timed where `grid` is None.

    Returns:
        One row per cell and execution; of `router_step`, which no sparsity changes, one per batch
        size and length.

    Raises:
        ConfigError: a sparsity beyond the calibration curve, or more tokens than the context holds.
        DataError: too little text for the prompts.

    Example:
        subject = subject_of_shape("llama-160m")
        print(bench(subject, Grid(sparsities=(0.4,))).to_terminal())
    """
    with advancing("timing", unit="cell") as advance:
        return _bench(subject, grid or Grid(), advance)


def _bench(subject: Subject, grid: Grid, advance: Phase) -> Benchmark:
    rows: list[Row] = []
    left_out: list[str] = []
    most = max(_new_tokens(phase, grid) for phase in grid.phases)
    context = context_of(subject.dense)
    for prompt in grid.prompt_tokens:
        try:
            check_length("timing", context, prompt, most)
        except ConfigError as error:
            room = (context or 0) - most
            fits = f"give --prompt-tokens {room} (prompt_tokens=) or fewer"
            raise error.advising(fits if room > 0 else "give fewer --decode-tokens") from error
    # Both models use graphs or neither does: a graph by itself speeds up decoding.
    graphs = can_capture(subject.dense) and can_capture(subject.routed)
    given = grid.sparsities or subject.sparsities
    cells = list(itertools.product(grid.phases, grid.batch_sizes, grid.prompt_tokens))
    for number, (phase, batch, prompt) in enumerate(cells):
        advance(number, len(cells))
        advance.tell(f"{phase}, batch {batch}, prompt {prompt}")
        ids = subject.prompts(batch, prompt)
        new = _new_tokens(phase, grid)
        sparsities = given[:1] if phase == "router_step" else given
        for sparsity in sparsities:
            try:
                with torch.set_grad_enabled(phase in get_args(Training)):
                    field = _field(subject, phase, ids, new, sparsity, grid, graphs)
                    found = list(_rows(subject, field, phase, ids, new, grid))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                left_out.append(f"{phase} of {batch} x {prompt} is left out: out of memory.")
                continue
            left_out += [each for each in field.left_out if each not in left_out]
            for row in found:
                logger.info(
                    "%s, batch %d, prompt %d, %.0f %%: %s %.2fx of %.2fx",
                    *(phase, batch, prompt, 100 * row.sparsity),
                    *(row.execution, row.speedup, row.ideal_speedup),
                )
            rows += found
    profile = stored_profile(subject.device, subject.dense.dtype)
    facts = {
        "date": datetime.date.today().isoformat(),
        "subject": subject.name,
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
    return Benchmark(tuple(rows), facts, tuple(left_out))


def _new_tokens(phase: PhaseName, grid: Grid) -> int:
    return 0 if phase in ("prefill", *get_args(Training)) else grid.decode_tokens


def _field(
    subject: Subject,
    phase: PhaseName,
    ids: Tensor,
    new: int,
    sparsity: float,
    grid: Grid,
    graphs: bool,
) -> Candidates:
    rule = subject.rule(sparsity)
    if phase == "router_step" or phase == "lora_step":
        return steps.candidates(subject, StepCell(phase, ids), rule, grid.executions)
    cell = Cell(phase, ids, new, captured=graphs and phase == "decode")
    return inference.candidates(subject, cell, rule, grid.executions)


def _rows(
    subject: Subject, field: Candidates, phase: PhaseName, ids: Tensor, new: int, grid: Grid
) -> Iterator[Row]:
    """Yield a row for each candidate of one cell, all timed in the same rounds."""
    tasks = {"dense": field.dense} | {each.execution: each.task for each in field.candidates}
    if field.prefill:
        tasks[PREFILL] = field.prefill
    seconds = alternate(tasks, grid.repeats, subject.device)
    memory = {name: peak_memory(task, subject.device) for name, task in tasks.items()}
    dense = statistics.median(seconds["dense"])
    share = statistics.median(seconds.get(PREFILL, [0.0])) / dense
    for each in field.candidates:
        own = seconds[each.execution]
        ratios = _ratios(seconds["dense"], own)
        before = seconds[each.on_top_of or "dense"]
        gated = None if each.execution == "gated" else seconds.get("gated")
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
            packed_share=each.packed_share,
            dense_seconds=dense,
            sparse_seconds=median,
            speedup=speedup,
            speedup_range=_quartiles(ratios),
            int8_speedup=int8,
            ideal_speedup=ideal,
            efficiency=speedup / ideal,
            over_gated=statistics.median(_ratios(gated, own)) if gated else None,
            tokens_per_second=len(ids) * (new or ids.shape[1]) / median,
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
