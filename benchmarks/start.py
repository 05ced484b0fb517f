"""Time from the command to the first token, and peak memory, beside transformers on the base.

    python benchmarks/start.py CHECKPOINT --repeats 7

Both are fresh processes that run in alternation; the first round, which fills the caches of the
disk, is not timed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from record import parser_of
from skipgpt.benchmark.timing.clock import Task, alternate
from skipgpt.checkpoint.folder import read_info
from skipgpt.model.base import base_location

PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
model.generate(**tokenizer("The cat", return_tensors="pt"), max_new_tokens=1, do_sample=False)
"""


def main() -> None:
    """Run both in alternation and print medians."""
    parser = parser_of(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    base = base_location(read_info(given.checkpoint).base)
    ways = {
        "plain transformers": [sys.executable, "-c", PLAIN, base],
        "skipgpt generate": [
            *(sys.executable, "-m", "skipgpt", "generate", str(given.checkpoint), "The cat"),
            *("--max-new-tokens", "1", "--quiet"),
        ],
    }
    memory: dict[str, list[float]] = {name: [] for name in ways}
    tasks = {
        name: Task(lambda _, name=name: memory[name].append(_peak(ways[name]))) for name in ways
    }
    for name, seconds in alternate(tasks, given.repeats, torch.device("cpu")).items():
        print(
            f"{name}: {statistics.median(seconds):.2f} s to the first token, "
            f"{statistics.median(memory[name]):,.0f} MiB"
        )


def _peak(command: list[str]) -> float:
    """Run a command and return its peak resident memory in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024  # in KiB


if __name__ == "__main__":
    main()
