"""The charts of a training run, from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skipgpt.report.charts.curves import KINDS, whole_percent
from skipgpt.report.charts.heat_map import heat_map
from skipgpt.report.charts.svg import Axis, Line, line_chart

POINTS = 240
"""Maximum points of a line."""
COLUMNS = 60
"""Maximum columns of a map."""
Chart = tuple[str, Axis, tuple[tuple[str, str, str], ...]]
"""Title, vertical axis, and the keys, names and kinds of lines."""
CHARTS: tuple[Chart, ...] = (
    ("language-model loss", Axis("nats per token"), (("lm_loss", "as trained", "one"),)),
    (
        "saved, in the unit of the budget",
        Axis("share", whole_percent, low=0),
        (("sparsity", "as trained", "one"), ("argmax_sparsity", "at a threshold of 0", "two")),
    ),
    (
        "entropy of routing",
        Axis("bits per module", low=0, high=1),
        (("entropy", "at the target", "one"),),
    ),
    (
        "swing from step to step",
        Axis("standard deviation of sparsity", whole_percent, low=0),
        (("sparsity_swing", "swing", "one"),),
    ),
    ("threshold of the target", Axis("margin"), (("threshold", "threshold", "one"),)),
    ("Gumbel temperature", Axis("temperature", low=0), (("temperature", "temperature", "one"),)),
    ("learning rate", Axis("rate", low=0), (("learning_rate", "rate", "one"),)),
)


def main_curves(metrics: Sequence[Mapping[str, Any]], target: float) -> str:
    """Draw loss and sparsity of each stage over its steps."""
    stages = by_stage(metrics).items()
    return "".join(_drawn(stage, lines, target, CHARTS[:2]) for stage, lines in stages)


def all_curves(metrics: Sequence[Mapping[str, Any]], target: float) -> str:
    """Draw everything that each stage logged, over its steps."""
    return "".join(
        _drawn(stage, lines, target, CHARTS[:2])
        + keep_maps(stage, lines)
        + _drawn(stage, lines, target, CHARTS[2:])
        for stage, lines in by_stage(metrics).items()
    )


def _drawn(
    stage: str, lines: Sequence[Mapping[str, Any]], target: float, charts: Sequence[Chart]
) -> str:
    drawn = []
    for title, axis, keys in charts:
        if shown := [line for key in keys if (line := _line(lines, *key)).points]:
            level = ("target", target) if keys[0][0] == "sparsity" else None
            named = f"Stage {stage}: {title}"
            drawn.append(line_chart(named, shown, Axis("step", low=0), axis, level=level))
    return "".join(drawn)


def keep_maps(stage: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Draw keep rates by layer and step: one map of attention, one of the MLP."""
    thinned = _thinned([line for line in lines if isinstance(line.get("keep"), Mapping)], COLUMNS)
    steps = [line["step"] for line in thinned]
    return "".join(
        heat_map(
            f"Stage {stage}: share of tokens that run {said}",
            steps,
            [line["keep"].get(kind, []) for line in thinned],
            kind,
        )
        for said, kind in KINDS
        if thinned
    )


def by_stage(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group the lines by stage, in their order."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for line in metrics:
        if isinstance(line.get("step"), int):
            stages.setdefault(str(line.get("stage", "")), []).append(line)
    return stages


def _line(lines: Sequence[Mapping[str, Any]], key: str, name: str, kind: str) -> Line:
    points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return Line(name, kind, _thinned(points, POINTS))


def _thinned(values: list[Any], count: int) -> list[Any]:
    """Keep every n-th value, counted from the newest, so that at most `count` remain."""
    return values[:: -max(1, -(-len(values) // count))][::-1]
