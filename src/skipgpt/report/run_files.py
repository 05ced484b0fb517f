"""What a run wrote about itself: run.json and metrics.jsonl, while it goes on as well."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

RUN, METRICS = "run.json", "metrics.jsonl"


def read_run(folder: Path) -> dict[str, Any]:
    """`run` and `metrics` of a folder; empty where it holds neither.

    A line that is being written is left out.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found["run"] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except ValueError:
            continue
    return {**found, "metrics": metrics}
