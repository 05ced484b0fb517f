"""The result of an analysis: a question, numbers and findings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from skipgpt.system.atomic import plain_json
from skipgpt.system.tables import markdown

Cell = str | int | float | None
Part = Literal["cost", "skips", "health"]
"""The part of a report that a table belongs to."""


@dataclass(frozen=True)
class Table:
    """The answer to one question.

    Attributes:
        name: short, for files and anchors.
        question: the question it answers, and whose it is.
        columns: names, with units.
        rows: one tuple of cells per row.
        findings: what the numbers say, in sentences.
        facts: the single numbers behind the findings, by name.
        warnings: what is wrong and what to do about it.
        part: of the report in which it stands.
    """

    name: str
    question: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    findings: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    part: Part = "skips"

    def column(self, name: str) -> list[Any]:
        """Return the cells of one column; a ValueError if there is none of this name."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN and infinity are null."""
        plain: dict[str, Any] = plain_json(vars(self))
        del plain["part"]
        return plain

    def to_markdown(self) -> str:
        """Return question, table and findings as Markdown."""
        rows = [[shown(cell) for cell in row] for row in self.rows]
        lines = [f"**{self.question}**", "", markdown([self.columns, *rows])]
        for sentence in self.findings:
            lines += ["", sentence]
        for sentence in self.warnings:
            lines += ["", f"Warning: {sentence}"]
        return "\n".join(lines)


def shown(cell: Cell) -> str:
    """Format a cell: four significant digits, pipes escaped."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell).replace("|", "\\|").replace("\n", "⏎")
