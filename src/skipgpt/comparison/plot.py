"""Plot of a comparison: excess loss against FLOPs saved, one line per method."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from skipgpt.comparison.result import Comparison, Line

logger = logging.getLogger("skipgpt")


def plot(comparison: Comparison, path: Path) -> bool:
    """Draw a comparison into an SVG file; log it and return False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no plot: it needs matplotlib (pip install 'skipgpt[report]')")
        return False
    groups: dict[str, list[Line]] = {}
    for line in comparison.lines():
        groups.setdefault(line.rows[0].method, []).append(line)
    # Below the axes, two methods per line, the legend does not narrow them.
    figure = Figure(figsize=(9, 6 + 0.12 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for number, (name, lines) in enumerate(groups.items()):
        if name == "dense":
            continue
        lines.sort(key=lambda line: line.share("flops"))
        axes.errorbar(
            [100 * line.share("flops") for line in lines],
            [line.excess for line in lines],
            [line.spread for line in lines],
            label=re.sub(r":\w+\.", ":", name),
            marker="osD^vP*X"[number % 8],
            color=f"C{number % 10}",
            linestyle=("-", "--", ":")[number // 10 % 3],
            linewidth=2.5 if name.startswith("router") else 1.2,
            capsize=2,
        )
    axes.axhline(0, color="black", linewidth=1, linestyle=":", label="dense")
    axes.set_xlabel("FLOPs saved per token, % of dense")
    axes.set_ylabel("excess loss over dense, nats per token")
    base, *data = (
        Path(name).name for name in (comparison.facts["base"], *comparison.facts["data"])
    )
    axes.set_title(f"{base} on {', '.join(data)}; budgets in {comparison.unit}")
    figure.legend(fontsize="small", loc="outside lower left", ncols=2)
    figure.savefig(path)
    return True
