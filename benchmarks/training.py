"""Time a training step of each stage, ours beside the authors' loop, in turn in one process.

    python benchmarks/training.py --out benchmarks/results/training-cpu.json
    python benchmarks/training.py --shape llama-3.2-1b --tokens 2048 --device cuda --dtype bfloat16

Weights and text are random, nothing is downloaded. `skipgpt` is what `train` runs with the recipe
`paper`: stage `router` gated, stage `lora` sparse at forced random routes, beside the same step and
routes in gated execution. `authors` is a new and small account of the authors' loop, see
authors_loop.py; its time depends on no routes. Seconds are medians over rounds, ratios are medians
of the rounds' own. `stored` is what autograd keeps between forward and backward, weights left out;
`peak` is what the device, or on a CPU the whole process, holds at most during a step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from authors_loop import authors_step, with_authors_layers
from record import parser_of, write_record
from skipgpt.benchmark.subject import Subject, sharing, subject_of_shape
from skipgpt.benchmark.timing.candidate import seeded
from skipgpt.benchmark.timing.clock import Task, alternate, peak_memory
from skipgpt.config import Stage, recipe
from skipgpt.model.lora import with_lora
from skipgpt.model.surgery import routers, train_only
from skipgpt.routing.decision import Forced, GumbelSample
from skipgpt.training.loop.single_step import single_step

CONFIG = recipe("paper")
Step = Callable[[], Tensor]


def authors(subject: Subject, stage: Stage, ids: Tensor, sparsity: float) -> tuple[Any, Step]:
    """Make the authors' model and its step."""
    model = with_authors_layers(sharing(subject.dense))
    rate = CONFIG.router_stage.learning_rate
    if stage == "lora":
        model, rate = with_lora(model, CONFIG.lora_stage), CONFIG.lora_stage.learning_rate
    train_only(model, "router" if stage == "router" else "lora")
    return model, authors_step(model, ids, sparsity, rate)


def ours(
    subject: Subject, stage: Stage, ids: Tensor, sparsity: float, kind: Any
) -> tuple[Any, Step]:
    """Make our model and its step."""
    noise, sites = torch.Generator().manual_seed(0), routers(subject.routed)
    kept = {site: torch.rand(ids.shape, generator=noise) >= sparsity for site in sites}
    routes = Forced({site: keep.to(ids.device) for site, keep in kept.items()})
    rule = routes if stage == "lora" else GumbelSample(CONFIG.router_stage.temperature_start)
    model = subject.executing(kind, rule, trains=True)
    return model, single_step(model, stage, CONFIG, ids, kind)


def stored_bytes(model: Any, step: Step) -> int:
    """Return what autograd keeps for the backward pass of a step, each piece of memory once."""
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            # Held until the end, so that no address is used twice.
            kept[memory.data_ptr()] = (memory.nbytes(), tensor)
        return tensor

    seeded()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(size for size, _ in kept.values())


def measure(
    subject: Subject, stage: Stage, ids: Tensor, sparsity: float, repeats: int
) -> list[dict[str, Any]]:
    """Return a row for each loop of one stage."""
    torch.manual_seed(0)
    made = {"authors": authors(subject, stage, ids, sparsity)}
    if stage == "lora":
        made["skipgpt sparse"] = ours(subject, stage, ids, sparsity, "sparse")
    made["skipgpt gated"] = ours(subject, stage, ids, sparsity, "gated")
    tasks = {name: Task(lambda _, step=step: step(), seeded) for name, (_, step) in made.items()}
    seconds = alternate(tasks, repeats, subject.device)
    rows = []
    for name, (model, step) in made.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["authors"], strict=True)]
        first, middle, third = statistics.quantiles(ratios, n=4, method="inclusive")
        row = {
            "stage": stage,
            "loop": name,
            "seconds": statistics.median(seconds[name]),
            "time_over_authors": middle,
            "time_over_authors_range": [first, third],
            "stored_bytes": stored_bytes(model, step),
            "peak_memory_bytes": peak_memory(tasks[name], subject.device),
        }
        if name == "skipgpt sparse":
            gated = zip(seconds[name], seconds["skipgpt gated"], strict=True)
            row["time_over_gated"] = statistics.median(a / b for a, b in gated)
        rows.append(row)
    return rows


def main() -> None:
    """Measure both stages and write them beside what they ran on."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--stages", nargs="+", choices=["router", "lora"], default=["router", "lora"]
    )
    parser.add_argument("--shape", default="llama-160m")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sparsity", type=float, default=0.4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    subject = subject_of_shape(options.shape, device=options.device, dtype=options.dtype)
    ids = subject.prompts(options.batch_size, options.tokens)
    rows = []
    for stage in options.stages:
        for row in measure(subject, stage, ids, options.sparsity, options.repeats):
            rows.append(row)
            print(
                f"{row['stage']:7}{row['loop']:15} {1000 * row['seconds']:8.0f} ms, "
                f"{row['time_over_authors']:.2f}x the authors', "
                f"stored {row['stored_bytes'] / 2**20:,.0f} MiB, "
                f"peak {(row['peak_memory_bytes'] or 0) / 2**20:,.0f} MiB"
            )
    write_record(
        options.out,
        rows,
        device=subject.device,
        shape=options.shape,
        batch_size=options.batch_size,
        tokens=options.tokens,
        sparsity=options.sparsity,
        routes="random",
        recipe="paper",
        repeats=options.repeats,
        dtype=str(subject.dense.dtype).removeprefix("torch."),
    )


if __name__ == "__main__":
    main()
