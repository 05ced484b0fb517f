"""Time all routers of a model, decisions included, beside a dense forward.

    python benchmarks/routers.py --out benchmarks/results/cpu/routers/routers.json

Each layer decides as it does in a forward, about one stream of random numbers, and runs nothing
else. Both kinds of router and the dense forward take turns in one process: `paper` is a linear map,
`default` divides its input by its root mean square before. Seconds and shares are medians over
rounds; the share in FLOPs is counted. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from record import parser_of, write_record
from skipgpt.benchmark.subject import Subject, sharing, subject_of_shape
from skipgpt.benchmark.timing.clock import Task, alternate
from skipgpt.benchmark.timing.phases import Cell
from skipgpt.config import recipe
from skipgpt.cost import Forward, work
from skipgpt.model.execution import decode
from skipgpt.model.surgery import add_routers, routed_layers, routers

ROUTERS = {
    # Stand-ins run where a module is skipped, so they are none of the cost of deciding.
    name: dataclasses.replace(recipe(name).router, stand_in=0)
    for name in ("paper", "default")
}


def decide(model: Any, entering: Tensor) -> None:
    """Decide about the stream entering [B, T, D] as all layers of a model do."""
    for layer in routed_layers(model):
        _ = decode.decide(layer, entering) or layer._decide(entering)


def flops_share(model: Any, forward: Forward) -> float:
    """Return the FLOPs of the routers over those of the dense forward."""
    run = work(model, forward, dict.fromkeys(routers(model), 1.0))
    return run.routing / work(model, forward).flops


@torch.inference_mode()
def measure(subject: Subject, cell: Cell, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of router beside one dense run."""
    forward = cell.prompt if cell.phase == "prefill" else cell.between
    models = {
        name: add_routers(sharing(subject.dense), config).eval() for name, config in ROUTERS.items()
    }
    width = subject.dense.config.hidden_size
    entering = torch.randn(
        forward.batch_size, forward.tokens, width, device=subject.device, dtype=subject.dense.dtype
    )
    tasks = {"dense": cell.task(subject.dense)} | {
        name: Task(lambda _, model=model: decide(model, entering)) for name, model in models.items()
    }
    seconds = alternate(tasks, repeats, subject.device)
    for name, model in models.items():
        shares = [own / dense for own, dense in zip(seconds[name], seconds["dense"], strict=True)]
        first, middle, third = statistics.quantiles(shares, n=4, method="inclusive")
        yield {
            "shape": subject.name,
            "phase": cell.phase,
            "tokens": forward.tokens,
            "cached": forward.cached,
            "routers": name,
            "dense_seconds": statistics.median(seconds["dense"]),
            "router_seconds": statistics.median(seconds[name]),
            "time_share": middle,
            "time_share_range": [first, third],
            "flops_share": flops_share(model, forward),
        }


def cells(subject: Subject, tokens: list[int], cached: int) -> Iterator[Cell]:
    """Yield a prefill of each length, and a step that decodes one token."""
    for length in tokens:
        yield Cell("prefill", subject.prompts(1, length), 0)
    yield Cell("decode", subject.prompts(1, cached), 1)


def told(row: dict[str, Any]) -> str:
    """Format a line of the table."""
    return (
        f"{row['shape']:12} {row['phase']:8} {row['tokens']:6,} {row['routers']:8} "
        f"{1e3 * row['router_seconds']:8.2f} of {1e3 * row['dense_seconds']:8.1f} ms "
        f"{row['time_share']:7.2%} ({row['time_share_range'][0]:.2%} to "
        f"{row['time_share_range'][1]:.2%}), {row['flops_share']:.2%} of the FLOPs"
    )


def main() -> None:
    """Measure, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["llama-160m", "llama-350m"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--cached", type=int, default=512, help="tokens before the decoded one")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for shape in given.shapes:
        subject = subject_of_shape(shape, device=given.device, dtype=given.dtype)
        for cell in cells(subject, given.tokens, given.cached):
            for row in measure(subject, cell, given.repeats):
                rows.append(row)
                print(told(row))
    write_record(
        given.out,
        rows,
        device=subject.device,
        repeats=given.repeats,
        dtype=str(subject.dense.dtype).removeprefix("torch."),
    )


if __name__ == "__main__":
    main()
