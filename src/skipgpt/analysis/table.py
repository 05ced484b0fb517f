"""What an analysis gives: a question, numbers, and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """The answer to one question.

    Attributes:
        name: short, for files and anchors.
        question: that it answers, and whose it is.
        columns: names; units are in them.
        rows: one tuple of cells each.
        findings: what the numbers say, in sentences.
        facts: single numbers that the sentences are made of, by name.
        warnings: what is wrong and what to do about it.
    """

    name: str
    question: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    findings: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def column(self, name: str) -> list[Any]:
        """The cells below one name.

        Raises:
            ValueError: there is no such column.
        """
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is no number is null."""
        return {
            "name": self.name,
            "question": self.question,
            "columns": list(self.columns),
            "rows": [[_plain(cell) for cell in row] for row in self.rows],
            "findings": list(self.findings),
            "facts": {name: _plain(value) for name, value in self.facts.items()},
            "warnings": list(self.warnings),
        }

    def to_markdown(self) -> str:
        """The question, the table and what it says."""
        lines = [f"**{self.question}**", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in self.rows]
        for sentence in self.findings:
            lines += ["", sentence]
        for sentence in self.warnings:
            lines += ["", f"Warning: {sentence}"]
        return "\n".join(lines)


def shown(cell: Cell) -> str:
    """A cell for people: four digits that count, and pipes that do not end it."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell).replace("|", "\\|").replace("\n", "⏎")


def _plain(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
