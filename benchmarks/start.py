"""From the command to the first token, and peak memory, beside plain transformers on the base.

python benchmarks/start.py CHECKPOINT --repeats 7
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from skipgpt.checkpoint.folder import read_info

PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
model.generate(**tokenizer("The cat", return_tensors="pt"), max_new_tokens=1, do_sample=False)
"""


def main() -> None:
    """Run both in alternation and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    base = read_info(given.checkpoint).base
    ways = {
        "plain transformers": [sys.executable, "-c", PLAIN, base],
        "skipgpt generate": [
            *(sys.executable, "-m", "skipgpt", "generate", str(given.checkpoint), "The cat"),
            *("--max-new-tokens", "1", "--quiet"),
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(given.repeats + 1):
        for name, command in ways.items():
            began = time.perf_counter()
            used = _peak(command)
            if repeat:  # the first round fills the caches of the disk
                seconds[name].append(time.perf_counter() - began)
                memory[name].append(used)
    for name in ways:
        print(
            f"{name}: {statistics.median(seconds[name]):.2f} s to the first token, "
            f"{statistics.median(memory[name]):,.0f} MB"
        )


def _peak(command: list[str]) -> float:
    """Run a command and return its peak resident memory in MB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1000


if __name__ == "__main__":
    main()
