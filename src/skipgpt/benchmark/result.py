"""Benchmark results as JSON and as a table, with a sentence where there is no gain."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from skipgpt.config import BUDGET_NOUNS, Budget
from skipgpt.system.tables import aligned, markdown

HEAD = (
    "phase", "batch", "prompt", "new", "asked", "sparsity", "run", "FLOPs", "dense ms", "ms",
    "speed-up", "range", "ideal", "efficiency", "tokens/s", "memory",
)  # fmt: skip
NOISE = 0.02
"""A smaller gain counts as none."""
LITTLE = 0.5
"""A smaller packed share explains a missing gain."""


@dataclass(frozen=True)
class Row:
    """One cell of the grid: the routed model, or a reference run, against dense.

    Attributes:
        phase: prefill, decode, generate, router_step or lora_step.
        batch_size: sequences per batch.
        prompt_tokens: tokens of the prompt; in decode, tokens in the cache at the start.
        new_tokens: tokens decoded per sequence; 0 in prefill.
        execution: how the routed model ran, or the name of a reference run.
        asked: the share that was to be saved; None for a run that no sparsity changes.
        budget: the unit of `asked`: modules, flops or time.
        sparsity: share of modules skipped, measured in this run; of `static`, removed.
        union_sparsity: share of (forward, module) pairs that no token of the forward ran.
        flops_share: FLOPs that ran over those of dense. A module that ran every token, as in `auto`
            where packing does not pay, counts in full, and its stand-in does not count.
        packed_share: among module runs in which some tokens kept and others skipped, the share
            that ran kept tokens only: 1 in sparse and where there are no such runs, 0 in gated.
            None where there are no routes.
        dense_seconds: median.
        sparse_seconds: median of this execution.
        speedup: median over rounds of dense over sparse seconds.
        speedup_range: the quartiles of the same.
        int8_speedup: speed-up of 8-bit weights alone, in the same rounds; 1 without them.
        ideal_speedup: upper bound of skipping, or of the reference run, times int8_speedup.
        efficiency: speedup over ideal_speedup.
        over_gated: median over rounds of gated seconds over those of this execution; None where
            gated was not timed, and for itself.
        tokens_per_second: over all sequences: processed tokens in prefill and steps, else new ones.
        peak_memory_bytes: peak memory of one run; None where it cannot be measured.
        dense_peak_memory_bytes: likewise for dense.
        note: remarks on this execution.
    """

    phase: str
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    execution: str
    asked: float | None
    budget: Budget | None
    sparsity: float
    union_sparsity: float
    flops_share: float
    packed_share: float | None
    dense_seconds: float
    sparse_seconds: float
    speedup: float
    speedup_range: tuple[float, float]
    int8_speedup: float
    ideal_speedup: float
    efficiency: float
    over_gated: float | None
    tokens_per_second: float
    peak_memory_bytes: int | None
    dense_peak_memory_bytes: int | None
    note: str = ""

    @property
    def no_gain(self) -> str:
        """Why there is no gain; empty where there is one."""
        if self.execution == "transformers":
            return ""
        if self.execution == "dense-int8":
            slow = self.speedup < 1 + NOISE
            return "8-bit products take as long as reading fewer bytes saves" if slow else ""
        if self.speedup / self.int8_speedup >= 1 + NOISE:
            return ""
        if self.phase == "router_step":
            return "stage router runs every module for every token and trains on it"
        if self.execution == "compiled":
            return "torch.compile gains nothing on this machine"
        if self.execution == "static":
            return (
                "most of the time goes into what removing layers leaves as it is: the "
                "language-model head, and the overhead of launching each operation"
            )
        if self.execution == "gated":
            return "gated execution runs every token and multiplies"
        if self.sparsity < NOISE:
            return "hardly anything is skipped"
        if self.ideal_speedup / self.int8_speedup < 1 + NOISE:
            return (
                "nearly every module is run by some sequence of the batch, so its weights are read"
            )
        if self.packed_share is not None and self.packed_share < LITTLE:
            which = "most modules" if self.packed_share else "every module"
            return (
                f"auto ran {which} on all tokens, as dense does, unless none kept it: at this size "
                "of model and batch, gathering the kept tokens would take longer than it saves"
            )
        return (
            "choosing and packing tokens takes as long as skipping saves; larger models and longer "
            "prompts gain"
        )


@dataclass(frozen=True)
class Benchmark:
    """All rows and what they were measured on.

    Attributes:
        rows: in the order of the grid.
        facts: subject, routes, dtype, rounds and hardware.
        left_out: a sentence for each run that was not possible here.
    """

    rows: tuple[Row, ...]
    facts: dict[str, Any]
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        rows = [{**dataclasses.asdict(row), "no_gain": row.no_gain} for row in self.rows]
        return {"rows": rows, "left_out": list(self.left_out), **self.facts}

    def to_markdown(self) -> str:
        """Render the table as Markdown, and the sentences below it."""
        table = markdown(self._table())
        return "\n".join([table, "", *(f"- {each}" for each in self.sentences())]).strip()

    def to_terminal(self) -> str:
        """Render the same in aligned columns."""
        return "\n".join([aligned(self._table()), *self.sentences()])

    def sentences(self) -> list[str]:
        """Notes, runs left out, and where there is no gain, with cells grouped by reason."""
        groups: dict[tuple[str, str, str], list[str]] = {}
        for row in self.rows:
            if row.no_gain:
                cell = f"{row.batch_size} x {row.prompt_tokens} at {row.sparsity:.0%}"
                over = f" after {row.int8_speedup:.2f}x" if row.int8_speedup != 1 else ""
                cell += f" ({row.speedup:.2f}x{over})"
                groups.setdefault((row.phase, row.execution, row.no_gain), []).append(cell)
        notes = dict.fromkeys(
            f"{row.note[0].upper()}{row.note[1:]}." for row in self.rows if row.note
        )
        no_gain = [
            f"No gain in {execution} {phase} of {', '.join(cells)}: {reason}."
            for (phase, execution, reason), cells in groups.items()
        ]
        return [*notes, *self.left_out, *no_gain]

    def _table(self) -> list[list[str]]:
        """Header and cells; a column over gated only where that was timed."""
        timed = any(row.over_gated for row in self.rows)
        cells = [
            [
                row.phase,
                str(row.batch_size),
                str(row.prompt_tokens),
                str(row.new_tokens or ""),
                _asked(row),
                f"{row.sparsity:.1%}",
                row.execution,
                f"{row.flops_share:.1%}",
                f"{1000 * row.dense_seconds:.1f}",
                f"{1000 * row.sparse_seconds:.1f}",
                f"{row.speedup:.2f}x",
                f"{row.speedup_range[0]:.2f} to {row.speedup_range[1]:.2f}",
                f"{row.ideal_speedup:.2f}x",
                f"{row.efficiency:.1%}",
                f"{row.tokens_per_second:,.0f}",
                ""
                if row.peak_memory_bytes is None
                else f"{row.peak_memory_bytes / 2**20:,.0f} MiB",
                *([f"{row.over_gated:.2f}x" if row.over_gated else ""] if timed else []),
            ]
            for row in self.rows
        ]
        return [[*HEAD, *(["over gated"] if timed else [])], *cells]


def _asked(row: Row) -> str:
    if row.asked is None or row.budget is None:
        return ""
    return f"{100 * row.asked:g}% of {BUDGET_NOUNS[row.budget]}"
