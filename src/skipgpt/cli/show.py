"""skipgpt show."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from skipgpt.cli import options

NAME = "show"
HELP = """Say what a checkpoint is, from its config alone; also verifies its files.
""" + options.examples(
    "skipgpt show out/nano-25",
    "skipgpt show out/nano-25 --json",
)


def run(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, read, print."""
    from skipgpt.checkpoint import local_folder, read_info, verify_files

    where = local_folder(folder)
    info = read_info(where)
    verify_files(where, info)
    reach = f"0 to {info.curve[-1][0]:.0%}" if info.curve else "not calibrated (argmax)"
    shares = ", ".join(f"{name} {value:.1%}" for name, value in info.sparsity.items())
    rows = {
        "base model": f"{info.base} (fingerprint {info.fingerprint})",
        "router": ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(info.router).items()),
        "recipe": info.recipe,
        "stages done": ", ".join(info.stages) or "none",
        "target sparsity": f"{info.target_sparsity:.0%}",
        "measured": shares or "not measured",
        "budget dial": reach,
        "files": ", ".join(sorted(info.files)) + " (verified)",
    }
    text = "\n".join(f"{name:16} {value}" for name, value in rows.items())
    options.emit(dataclasses.asdict(info), as_json, text)
