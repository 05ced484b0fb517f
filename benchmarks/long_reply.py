"""Memory and pauses of one long reply of `skipgpt serve`, streamed.

    skipgpt serve CHECKPOINT --port 8000
    python benchmarks/long_reply.py http://127.0.0.1:8000 --tokens 4096 --process PID

Memory is that of the server's process, read from /proc. Keys and values grow with the reply; what
grows beyond them would be a record of the routes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import urllib.request
from pathlib import Path


def resident(process: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no VmRSS of process {process}")


def main() -> None:
    """Ask for the reply and print a line for each eighth of it, then the pauses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--process", type=int, required=True)
    given = parser.parse_args()
    with urllib.request.urlopen(f"{given.url}/v1/models") as models:
        name = json.load(models)["data"][0]["id"]
    body = {
        "model": name,
        "prompt": "The history of the steam engine",
        "max_tokens": given.tokens,
        "temperature": 0,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{given.url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    times = [time.perf_counter()]
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if not line.startswith(b"data:"):
                continue
            times.append(time.perf_counter())
            if len(times) % (given.tokens // 8) == 0:
                print(f"{len(times):,} chunks: {resident(given.process):,.0f} MB", flush=True)
    print(f"{len(times) - 1:,} chunks: {resident(given.process):,.0f} MB")
    pauses = [1000 * (b - a) for a, b in itertools.pairwise(times[1:])]
    print(
        f"pause before a chunk: median {statistics.median(pauses):.0f} ms, "
        f"last hundred {statistics.median(pauses[-100:]):.0f} ms, "
        f"most {max(pauses):.0f} ms, before the end {pauses[-1]:.0f} ms"
    )


if __name__ == "__main__":
    main()
