"""What a run wrote about itself: run.json and metrics.jsonl, while it goes on as well."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

RUN, METRICS = "run.json", "metrics.jsonl"


def read_run(folder: Path) -> dict[str, Any]:
    """`run` and `metrics` of a folder; empty where it holds neither.

    A line that is being written is left out; what is no number, as of a loss that blew up, is None.
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
