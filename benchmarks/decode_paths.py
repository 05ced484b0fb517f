"""Time `skipgpt generate` by how a decode step decides, in alternation, and beside dense.

    python benchmarks/decode_paths.py CHECKPOINT --text TEXT

The first way is what the product does; the others are what it could do without that code.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import skipgpt
from record import parser_of
from skipgpt.benchmark.timing.clock import Task, alternate
from skipgpt.generation import generate
from skipgpt.model.execution import decode


def undecided(*_: object) -> None:
    """Leave the decision to the path of tensors."""


def main() -> None:
    """Run and print a line per way."""
    parser = parser_of(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="its first characters are read")
    parser.add_argument("--characters", type=int, default=600)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    model, tokenizer = skipgpt.load(given.checkpoint, merge=True)
    prompt = given.text.read_text()[: given.characters]
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "margins as Python floats": nullcontext,
        "margins as tensors": lambda: mock.patch.object(decode, "decide", undecided),
        "dense": lambda: skipgpt.execution(model, "dense"),
    }
    tokens: dict[str, int] = {}

    def run(name: str) -> None:
        with ways[name]():
            done = generate(model, tokenizer, prompt, max_new_tokens=given.new_tokens)
        tokens[name] = done.new_tokens  # greedy, so the same in each round

    tasks = {name: Task(lambda _, name=name: run(name)) for name in ways}
    seconds = alternate(tasks, given.repeats, model.device)
    median = {name: statistics.median(seconds[name]) / tokens[name] for name in ways}
    for name, each in median.items():
        of_first = each / median["margins as Python floats"]
        print(f"{name}: {each * 1e3:.1f} ms per token, {of_first:.2f}x")


if __name__ == "__main__":
    main()
