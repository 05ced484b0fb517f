"""What a path tells of what it holds: a pipe may not end, and its name may say nothing."""

from __future__ import annotations

import os
from pathlib import Path

JSON_LINES = (".jsonl", ".json", ".ndjson")
ROWS = (*JSON_LINES, ".parquet")
DESCRIPTORS = ("/dev/stdin", "/dev/fd/", "/proc/")
"""Where paths begin that name an open file or pipe, not what it holds."""


def is_pipe(path: Path) -> bool:
    """Whether a path is there and may not end: neither a regular file nor a folder."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def is_nameless(path: Path) -> bool:
    """Whether a path is a pipe or a descriptor whose name does not tell what it holds."""
    opened = is_pipe(path) or str(path).startswith(DESCRIPTORS)
    return opened and path.suffix.lower() not in ROWS
