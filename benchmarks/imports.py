"""What `import skipgpt` costs beside `import torch`: medians of alternating fresh processes.

python benchmarks/imports.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    """Wall-clock of a fresh interpreter that runs one statement."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Alternate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"import torch": [], "import skipgpt": []}
    for _ in range(options.repeats):
        for statement, measured in times.items():
            measured.append(seconds(statement))
    for statement, measured in times.items():
        print(f"{statement}: {statistics.median(measured):.2f} s")


if __name__ == "__main__":
    main()
