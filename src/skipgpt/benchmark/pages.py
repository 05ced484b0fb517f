"""Write a benchmark to disk: JSON, a Markdown table, and a plot where matplotlib is installed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from skipgpt.benchmark.result import Benchmark, Row
from skipgpt.system.atomic import staged, to_json

logger = logging.getLogger("skipgpt")


def write(result: Benchmark, folder: Path) -> None:
    """Write bench.json, bench.md and bench.svg.

    Raises:
        CheckpointError: the folder cannot be written; what was there is untouched.
    """
    with staged(folder) as stage:
        (stage / "bench.json").write_text(to_json(result.to_dict()), encoding="utf-8")
        facts = ", ".join(f"{name} {_in_brief(value)}" for name, value in result.facts.items())
        page = f"{facts}\n\n{result.to_markdown()}\n"
        (stage / "bench.md").write_text(page, encoding="utf-8")
        plot(result, stage / "bench.svg")


def _in_brief(fact: Any) -> Any:
    """Format a fact; of the device figures, only whether they are measured or typical."""
    return fact["source"].split()[0] if isinstance(fact, dict) else fact


def plot(result: Benchmark, path: Path) -> None:
    """Plot efficiency: one panel per phase, one line per execution, batch and prompt size.

    Where matplotlib is not installed, that is logged and nothing is drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no plot: it needs matplotlib (pip install 'skipgpt[report]')")
        return
    phases = list(dict.fromkeys(row.phase for row in result.rows))
    figure = Figure(figsize=(4.5 * len(phases), 4), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False, sharey=True)[0]
    for axes, phase in zip(panels, phases, strict=True):
        lines: dict[str, list[Row]] = {}
        for row in result.rows:
            if row.phase == phase:
                name = f"{row.execution}, batch {row.batch_size}, prompt {row.prompt_tokens}"
                lines.setdefault(name, []).append(row)
        for name, rows in lines.items():
            rows.sort(key=lambda row: row.sparsity)
            shares = [100 * row.sparsity for row in rows]
            axes.plot(shares, [row.efficiency for row in rows], marker="o", label=name)
        axes.axhline(1, color="black", linewidth=1, linestyle=":")
        axes.set_title(phase)
        axes.set_xlabel("modules skipped, %")
        axes.legend(fontsize="small")
    panels[0].set_ylabel("speed-up / ideal speed-up")
    figure.suptitle(f"{result.facts['subject']}, {result.facts['device']}", fontsize="medium")
    figure.savefig(path)
