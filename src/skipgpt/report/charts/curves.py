"""The charts of a checkpoint's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skipgpt.analysis.table import Table
from skipgpt.report.charts.svg import Axis, Line, line_chart
from skipgpt.report.content import Report

KINDS = (("attention", "attn"), ("MLP", "mlp"))


def whole_percent(share: float) -> str:
    """Format a share in whole per cent, for an axis."""
    return f"{share:.0%}"


def loss_curve(report: Report) -> str:
    """Draw loss against measured sparsity, one dot per stop."""
    points = [(s.measured.sparsity["module"], s.measured.nll_per_token) for s in report.stops]
    knee = report.table("stress").facts.get("knee")
    return line_chart(
        "Loss against budget",
        [Line("routed", "one", points, dots=True)],
        Axis("modules skipped", whole_percent, low=0),
        Axis("nats per token"),
        level=("dense base", report.dense.nll_per_token),
        marks=[("knee", knee)] if knee is not None else [],
    )


def agreement_curve(report: Report) -> str:
    """Draw top-1 agreement with dense against measured sparsity; empty where not measured."""
    points = [
        (stop.measured.sparsity["module"], stop.measured.closeness.agreement)
        for stop in report.stops
        if stop.measured.closeness
    ]
    if len(points) < len(report.stops):
        return ""
    return line_chart(
        "Agreement with the dense base against budget",
        [Line("routed", "one", points, dots=True)],
        Axis("modules skipped", whole_percent, low=0),
        Axis("tokens with the same top-1", whole_percent, low=0, high=1),
    )


def loss_curves(reports: Mapping[str, Report]) -> str:
    """Draw excess over each checkpoint's own dense base, so that unlike bases share an axis."""
    lines = []
    for n, (name, report) in enumerate(reports.items()):
        dense = report.dense.nll_per_token
        points = [
            (s.measured.sparsity["module"], s.measured.nll_per_token - dense) for s in report.stops
        ]
        lines.append(Line(name, ("one", "two")[n % 2], points, dots=True, number=n // 2))
    return line_chart(
        "Excess over the dense base against budget",
        lines,
        Axis("modules skipped", whole_percent, low=0),
        Axis("nats per token"),
        level=("dense bases", 0.0),
    )


def position_curves(table: Table) -> str:
    """Draw keep rates along the row."""
    places = table.column("position")
    lines = [
        Line(name, kind, list(zip(places, table.column(f"{kind} keep rate"), strict=True)))
        for name, kind in KINDS
    ]
    width = int(table.facts["width"])
    return line_chart(
        f"Modules kept along a row, sliding mean of {width} tokens",
        lines,
        Axis("place in the row", low=0),
        Axis("share of tokens", whole_percent, low=0, high=1),
    )


def depth_curves(table: Table, names: Sequence[str]) -> str:
    """Draw keep rates over relative depth, of several checkpoints."""
    middles = [(n + 0.5) / len(table.rows) for n in range(len(table.rows))]
    lines = [
        Line(
            f"{name}, {said}",
            kind,
            list(zip(middles, table.column(f"{name}, {kind}"), strict=True)),
            number=n,
        )
        for n, name in enumerate(names)
        for said, kind in KINDS
    ]
    return line_chart(
        "Modules kept over depth",
        lines,
        Axis("relative depth", whole_percent, low=0, high=1),
        Axis("share of tokens", whole_percent, low=0, high=1),
    )
