"""Time `import skipgpt` beside `import torch`: medians of alternating fresh processes.

    python benchmarks/imports.py

A statement is the only one of its process, so that neither finds the other's modules.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import torch

from record import parser_of
from skipgpt.benchmark.timing.clock import Task, alternate

STATEMENTS = ("import torch", "import skipgpt")


def main() -> None:
    """Alternate and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    tasks = {
        each: Task(lambda _, run=(sys.executable, "-c", each): subprocess.run(run, check=True))
        for each in STATEMENTS
    }
    for each, seconds in alternate(tasks, given.repeats, torch.device("cpu")).items():
        print(f"{each}: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
