"""All recorded runs of `skipgpt bench` in one table: one line per cell, one column per sparsity.

    python benchmarks/summary.py benchmarks/results/cpu

Reads every bench.json below the folder. A cell says the speed-up over dense, the ideal, and the
share of the ideal that was reached. The table is that of docs/benchmarking.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from skipgpt.config import BUDGET_NOUNS, BUDGETS

ASKED = (0, 25, 40, 50, 60)
"""Per cent of modules, of all records that do not say what was asked."""

Line = tuple[str, str, str, int, int, str]
Column = tuple[int, float]
"""The unit, as its place among the budgets, and the per cent asked of it."""


def lines_of(folder: Path) -> dict[Line, dict[Column, dict[str, Any]]]:
    """Rows by subject, phase, execution, batch, prompt and folder, then by what was asked."""
    lines: dict[Line, dict[Column, dict[str, Any]]] = {}
    for path in sorted(folder.rglob("bench.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for row in document["rows"]:
            line = (_name(document), row["phase"], row["execution"])
            # A cell that is timed in several folders has a line for each.
            where = (row["batch_size"], row["prompt_tokens"], path.parent.name)
            lines.setdefault((*line, *where), {})[_column(row)] = row
    return lines


def markdown(folder: Path) -> str:
    """The table."""
    lines = lines_of(folder)
    columns = sorted({asked for cells in lines.values() for asked in cells})
    head = ["model", "phase", "execution", "batch", "prompt", "folder", *map(_title, columns)]
    table = [head, ["---"] * len(head)]
    for line, cells in sorted(lines.items()):
        found = [_cell(cells[each]) if each in cells else "" for each in columns]
        table.append([*map(str, line), *found])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _name(document: dict[str, Any]) -> str:
    """The shape, or the base of a checkpoint and the checkpoint's folder."""
    base, subject = document.get("base"), document["subject"]
    return f"{Path(base).name} ({subject})" if base else subject


def _column(row: dict[str, Any]) -> Column:
    if "asked" not in row:
        # What was drawn or learned is near what was asked.
        return 0, min(ASKED, key=lambda each: abs(each / 100 - row["sparsity"]))
    # Nothing is as much in each unit, and a run without a sparsity skips nothing.
    unit = BUDGETS.index(row["budget"]) if row["asked"] else 0
    return unit, round(100 * (row["asked"] or 0), 6)


def _title(column: Column) -> str:
    unit, asked = column
    return f"{asked:g} %" + (f" of {BUDGET_NOUNS[BUDGETS[unit]]}" if unit else "")


def _cell(row: dict[str, Any]) -> str:
    if row["sparsity"] == 0:
        return f"{row['speedup']:.2f}x"
    return f"{row['speedup']:.2f}x of {row['ideal_speedup']:.2f}x, {row['efficiency']:.0%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    print(markdown(parser.parse_args().folder))


if __name__ == "__main__":
    main()
