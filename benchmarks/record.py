"""What the scripts of this folder share: their parser, and the record that they write."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from skipgpt.system.hardware import hardware

FOLDER = Path(__file__).parent


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """Make the parser of a script; `--help` shows the docstring line by line as written."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def write_record(
    path: Path | None, rows: Any, *, device: torch.device | None = None, **settings: Any
) -> None:
    """Write rows as JSON, beside what they were measured with; do nothing where `path` is None.

    Args:
        path: the file; its folder is made.
        rows: what was measured.
        device: that it was measured on; the CPU where None.
        settings: what was measured how, in plain JSON types.
    """
    if path is None:
        return
    document = {
        "rows": rows,
        **settings,
        "date": datetime.date.today().isoformat(),
        "command": command(),
        "commit": COMMIT,
        **hardware(device or torch.device("cpu")),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def command() -> str:
    """Return the command line without the places of interpreter and script on this machine."""
    script, *given = sys.argv
    return shlex.join([Path(sys.executable).name, f"benchmarks/{Path(script).name}", *given])


def commit_of(folder: Path) -> str | None:
    """Return the short hash of a checkout, with `-dirty` where files differ; None without git."""
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


COMMIT = commit_of(FOLDER)
"""Read at import: before the end of a long run the checkout may have moved on."""
