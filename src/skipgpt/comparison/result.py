"""The rows of a comparison, as JSON and as a table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

from skipgpt.config import BUDGET_NOUNS
from skipgpt.system.tables import aligned, markdown

COLUMNS = (
    "method",
    "nats/token",
    "excess",
    "KL",
    "agreement",
    "module",
    "attn",
    "mlp",
    "params",
    "flops",
)


@dataclass(frozen=True)
class Row:
    """One method at one budget and seed.

    Attributes:
        method: as requested, followed in brackets by another way of evaluation.
        target: the requested budget, a share of what the comparison's `budget` counts.
        seed: seed of its training.
        sparsity: measured on the held-out text: module, attn, mlp, params, flops and, where the
            machine was profiled, time.
        nll_per_token: held-out loss in nats.
        excess_nll: loss above the dense base model.
        flops: FLOPs run per token.
        seconds: wall-clock time of search, fitting and training, including those of the rows that
            it builds on; not of measuring.
        note: what has to be known to read the row.
        checkpoint: the folder of the trained model, if there is one.
        kl_to_dense: mean KL(dense || this) in nats per token, to the base model without LoRA; None
            in rows that an earlier version measured.
        agreement: share of tokens at which both have the same most likely next one; likewise.
        tokens_trained: tokens that gradient steps were taken on, repeated ones counted each time.
    """

    method: str
    target: float
    seed: int
    sparsity: dict[str, float]
    nll_per_token: float
    excess_nll: float
    flops: float
    seconds: float = 0.0
    note: str = ""
    checkpoint: str | None = None
    kl_to_dense: float | None = None
    agreement: float | None = None
    tokens_trained: int = 0


def read_elsewhere(method: str, target: float) -> str:
    """Name the rows of a checkpoint that was made for one target and is set to another."""
    return f"{method} (dial of {target:g})"


@dataclass(frozen=True)
class Line:
    """The rows of one method at one budget, one per seed."""

    rows: tuple[Row, ...]

    @property
    def excess(self) -> float:
        """Excess loss, mean over seeds."""
        return mean(row.excess_nll for row in self.rows)

    @property
    def spread(self) -> float:
        """Half the range of excess loss over seeds."""
        excesses = [row.excess_nll for row in self.rows]
        return (max(excesses) - min(excesses)) / 2

    def share(self, name: str) -> float:
        """A sparsity, mean over seeds."""
        return mean(row.sparsity[name] for row in self.rows)


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        rows: in the order of methods, budgets and seeds.
        facts: base, text and settings that all of them share.
    """

    rows: tuple[Row, ...]
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @property
    def unit(self) -> str:
        """The unit of its budgets, in words."""
        return BUDGET_NOUNS[self.facts.get("budget", "modules")]

    def lines(self) -> list[Line]:
        """Group the rows by method and budget, seeds together, in the order of the rows."""
        groups: dict[tuple[str, float], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.method, row.target), []).append(row)
        return [Line(tuple(rows)) for rows in groups.values()]

    @property
    def reference(self) -> str | None:
        """The method in whose excess the others are told: `router`, or else `fit`."""
        methods = {row.method for row in self.rows}
        return next((name for name in ("router", "fit") if name in methods), None)

    def times_reference(self, line: Line) -> float | None:
        """Return the ratio to the excess of `reference` at the same FLOPs, or None if unknown.

        That excess is interpolated between the reference's budgets, and 0 at dense. Beyond its
        largest budget, that checkpoint's rows at larger ones are used, if measured.
        """
        name = str(self.reference)
        own = [other for other in self.lines() if other.rows[0].method == name]
        largest = max((other.rows[0].target for other in own), default=0.0)
        beyond = [
            other
            for other in self.lines()
            if other.rows[0].method == read_elsewhere(name, largest)
            and other.rows[0].target > largest
        ]
        points = [(other.share("flops"), other.excess) for other in own + beyond]
        curve = sorted({0.0: 0.0, **dict(points)}.items())
        wanted = line.share("flops")
        for (low, at_low), (high, at_high) in pairwise(curve):
            if low < wanted <= high + (0.01 if high == curve[-1][0] else 0.0):
                ours = at_low + (at_high - at_low) * (wanted - low) / (high - low)
                return line.excess / ours if ours > 0 else None
        return None

    def to_markdown(self) -> str:
        """Return the table of docs/results.md."""
        return markdown(self._cells())

    def to_terminal(self) -> str:
        """Return the same table in aligned columns."""
        table = self._cells()
        return aligned(table, left=(0, len(table[0]) - 1))

    def _cells(self) -> list[list[str]]:
        """The head of the table, and a row of cells for each line."""
        times = [f"x {self.reference}"] * bool(self.reference)
        senses = [*COLUMNS[5:], *["time"] * any("time" in row.sparsity for row in self.rows)]
        last = ("budget", "tokens trained", "seconds", "note")
        cells = [[*COLUMNS[:5], *senses, *times, *last]]
        for line in self.lines():
            first, several = line.rows[0], len(line.rows) > 1
            spread = f" ± {line.spread:.4f}" if several else ""
            ratio = self.times_reference(line)
            cells.append(
                [
                    first.method,
                    f"{mean(row.nll_per_token for row in line.rows):.4f}",
                    f"{line.excess:.4f}{spread}",
                    _mean([row.kl_to_dense for row in line.rows], ".4f"),
                    _mean([row.agreement for row in line.rows], ".1%"),
                    *(_mean([row.sparsity.get(n) for row in line.rows], ".1%") for n in senses),
                    *("" if ratio is None else f"{ratio:.1f}" for _ in times),
                    f"{first.target:.1%} of {self.unit}" if first.target else "",
                    f"{first.tokens_trained:,}",
                    f"{mean(row.seconds for row in line.rows):.0f}",
                    first.note,
                ]
            )
        return cells


def _mean(values: list[float | None], form: str) -> str:
    """The mean over seeds as text; empty unless all were measured."""
    known = [value for value in values if value is not None]
    return format(mean(known), form) if len(known) == len(values) else ""
