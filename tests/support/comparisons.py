"""Comparisons of tiny bases."""

from __future__ import annotations

from pathlib import Path

from runs import COMPARED
from skipgpt.comparison.result import Comparison, Row
from skipgpt.comparison.setup import ComparisonSetup, prepare
from skipgpt.config import Placement

ALL = (
    *(
        "dense",
        "router",
        "router+lora",
        "router@paper",
        "joint",
        "coupled",
        "sequence",
        "random@paper",
    ),
    *("mod", "mod-d", "d-llm", "sleb", "llm-drop", "laco", "sleb+lora", "dense+lora"),
)


WHOLE = 1 / 3
"""A budget that is a whole number of layers and of modules: one of 3, two of 6."""


def by_method(comparison: Comparison) -> dict[str, Row]:
    return {row.method: row for row in comparison.rows}


def setup_of(base: Path) -> ComparisonSetup:
    data = [str(base.parent / "stories.jsonl")]
    return prepare(str(base), data, "default", dict(COMPARED), placement=Placement())
