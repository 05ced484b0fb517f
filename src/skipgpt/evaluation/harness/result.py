"""Scores of a dense and a sparse model on tasks, as JSON and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skipgpt.system.tables import aligned


@dataclass(frozen=True)
class Score:
    """The score of one model on one task.

    Attributes:
        task: its name.
        shots: few-shot examples before each item.
        items: how many were scored.
        metric: the task's main metric.
        value: value of that metric.
        stderr: its standard error; None if the harness gives none.
        metrics: everything that the harness measured, by metric and filter.
    """

    task: str
    shots: int
    items: int
    metric: str
    value: float
    stderr: float | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class Run:
    """The scores of one model at one sparsity.

    Attributes:
        asked: requested sparsity; 0 for the dense base, None for the trained target.
        scores: score of each task.
        sparsity: measured in this run over all tasks: module, attn, mlp, params, flops.
        by_task: the same over the items of each requested task.
        cut_off: requests that were longer than the model's context.
    """

    asked: float | None
    scores: tuple[Score, ...]
    sparsity: dict[str, float]
    by_task: dict[str, dict[str, float]]
    cut_off: int

    @property
    def mean(self) -> float:
        """Mean score over tasks."""
        return fmean(score.value for score in self.scores)


@dataclass(frozen=True)
class Benchmark:
    """The scores of a checkpoint beside those of its dense base model, without routers and LoRA."""

    dense: Run
    sparse: Run

    @property
    def retention(self) -> dict[str, float | None]:
        """The share of the dense score that is kept, by task; None where dense scored 0."""
        pairs = zip(self.dense.scores, self.sparse.scores, strict=True)
        return {d.task: s.value / d.value if d.value else None for d, s in pairs}

    @property
    def mean_retention(self) -> float | None:
        """The mean of the retentions, as the paper reports it."""
        kept = [share for share in self.retention.values() if share is not None]
        return fmean(kept) if kept else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "tasks": [
                {
                    "task": d.task,
                    "shots": d.shots,
                    "items": d.items,
                    "metric": d.metric,
                    "dense": _told(d),
                    "sparse": _told(s),
                    "retention": self.retention[d.task],
                }
                for d, s in zip(self.dense.scores, self.sparse.scores, strict=True)
            ],
            "mean": {
                "dense": self.dense.mean,
                "sparse": self.sparse.mean,
                "retention": self.mean_retention,
            },
            "asked_sparsity": self.sparse.asked,
            "sparsity": self.sparse.sparsity,
            "sparsity_by_task": self.sparse.by_task,
            "cut_off_requests": self.sparse.cut_off,
        }

    def to_terminal(self) -> str:
        """Return a table, scores in percent."""
        rows: list[tuple[str, ...]] = [
            ("task", "shots", "items", "metric", "dense", "sparse", "kept")
        ]
        for d, s in zip(self.dense.scores, self.sparse.scores, strict=True):
            kept = _percent(self.retention[d.task])
            rows.append(
                (d.task, str(d.shots), f"{d.items:,}", d.metric, _value(d), _value(s), kept)
            )
        means = (f"{100 * run.mean:.2f}" for run in (self.dense, self.sparse))
        rows.append(("mean", "", "", "", *means, _percent(self.mean_retention)))
        lines = [aligned(rows, left=(0, 3))]
        shares = ", ".join(f"{name} {value:.1%}" for name, value in self.sparse.sparsity.items())
        lines.append(f"measured sparsity: {shares}")
        if self.sparse.cut_off:
            lines.append(f"{self.sparse.cut_off:,} requests were longer than the model's context")
        return "\n".join(lines)


def _told(score: Score) -> dict[str, Any]:
    return {"value": score.value, "stderr": score.stderr, "metrics": score.metrics}


def _value(score: Score) -> str:
    spread = f" ± {100 * score.stderr:.2f}" if score.stderr is not None else ""
    return f"{100 * score.value:.2f}{spread}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
