"""All recorded runs of `skipgpt bench` in one table, a line for each cell and a column a sparsity.

    python benchmarks/summary.py benchmarks/results/cpu

Reads every bench.json below the folder. A cell says the speed-up over dense, the ideal, and the
share of the ideal that was reached. The table is that of docs/benchmarking.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ASKED = (0, 25, 40, 50, 60)
"""Per cent of modules, of all recorded runs."""

Line = tuple[str, str, str, int, int, str]


def lines_of(folder: Path) -> dict[Line, dict[int, dict[str, Any]]]:
    """Rows by subject, phase, execution, batch, prompt and folder, then by per cent asked."""
    lines: dict[Line, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.rglob("bench.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for row in document["rows"]:
            line = (document["subject"], row["phase"], row["execution"])
            # A cell that is timed in several folders has a line for each.
            where = (row["batch_size"], row["prompt_tokens"], path.parent.name)
            # What was drawn or learned is near what was asked.
            asked = min(ASKED, key=lambda each: abs(each / 100 - row["sparsity"]))
            lines.setdefault((*line, *where), {})[asked] = row
    return lines


def markdown(folder: Path) -> str:
    """The table."""
    lines = lines_of(folder)
    columns = sorted({asked for cells in lines.values() for asked in cells})
    head = ["model", "phase", "execution", "batch", "prompt", "folder"]
    head += [f"{each} %" for each in columns]
    table = [head, ["---"] * len(head)]
    for line, cells in sorted(lines.items()):
        told = [_cell(cells[each]) if each in cells else "" for each in columns]
        table.append([*map(str, line), *told])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


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
