"""Read run.json and metrics.jsonl of a training run, also while it is running."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

RUN, METRICS = "run.json", "metrics.jsonl"


def read_run(folder: Path) -> dict[str, Any]:
    """Read `run` and `metrics` of a folder; empty where it holds neither.

    A half-written line is left out; NaN and infinity, as of a diverged loss, become None.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found["run"] = _plain((folder / RUN).read_text(encoding="utf-8"))
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    metrics = []
    for line in lines:
        try:
            metrics.append(_plain(line))
        except ValueError:
            continue
    return {**found, "metrics": metrics}


def _plain(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)
