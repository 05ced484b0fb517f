"""Time `skipgpt generate` by how a decode step decides, in alternation, and beside dense.

    python benchmarks/decode_paths.py CHECKPOINT --text TEXT

The first way is what the product does; the others are what it could do without that code.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import skipgpt
from skipgpt.generation import generate
from skipgpt.model.execution import decode

WAYS = {
    "margins as Python floats": {},
    "margins as tensors": {"decide": lambda *_: None},
}


def main() -> None:
    """Run and print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="its first characters are read")
    parser.add_argument("--characters", type=int, default=600)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    model, tokenizer = skipgpt.load(given.checkpoint, merge=True)
    prompt = given.text.read_text()[: given.characters]

    def seconds(changes: dict[str, object]) -> float:
        with ExitStack() as stack:
            for name, function in changes.items():
                stack.enter_context(mock.patch.object(decode, name, function))
            began = time.perf_counter()
            done = generate(model, tokenizer, prompt, max_new_tokens=given.new_tokens)
            return (time.perf_counter() - began) / done.new_tokens

    seen: dict[str, list[float]] = {name: [] for name in (*WAYS, "dense")}
    for repeat in range(given.repeats + 1):
        for name, changes in WAYS.items():
            seen[name].append(seconds(changes))
        with skipgpt.execution(model, "dense"):
            seen["dense"].append(seconds({}))
        if not repeat:  # the first round warms up
            seen = {name: [] for name in seen}
    first = statistics.median(seen["margins as Python floats"])
    for name, each in seen.items():
        median = statistics.median(each)
        print(f"{name}: {median * 1e3:.1f} ms per token, {median / first:.2f}x")


if __name__ == "__main__":
    main()
