"""skipgpt demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from skipgpt.cli.shared import options

NAME = "demo"
HELP = """Run the whole pipeline on the embedded base model, offline, in a few minutes.

Fits routers, calibrates, heals with LoRA, compares with the dense model and static removal, and
maps what was skipped. Writes checkpoint, demo.json and report.html.
""" + options.examples("skipgpt demo", "skipgpt demo --sparsity 0.4 --out /tmp/demo --json")


def run(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo-out"),
    sparsity: Annotated[float, typer.Option(help="Share of --budget to save.")] = 0.25,
    budget: Annotated[
        str, typer.Option(help="What --sparsity counts: modules, flops or time.")
    ] = "flops",
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, run, print."""
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.config import check_budget
    from skipgpt.demo import PROMPT, demo
    from skipgpt.report.terminal import has_colour

    result = demo(
        out, sparsity=sparsity, budget=check_budget(budget), seed=seed, device=device, dtype=dtype
    )
    samples = [f"--- {name} sample ---\n{PROMPT}{text}" for name, text in result.samples.items()]
    shown = [
        f"{result.table()}\n",
        f"static removes: {', '.join(result.static_modules)}\n",
        *(f"{sample}\n" for sample in samples),
        f"{result.map.to_terminal(colour=has_colour(sys.stdout))}\n",
        f"{out}/checkpoint   {out}/demo.json   {out}/report.html",
    ]
    options.emit(result.to_dict(), as_json, "\n".join(shown))
