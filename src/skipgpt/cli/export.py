"""skipgpt export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skipgpt.cli import options

NAME = "export"
HELP = """Write a checkpoint and its base model as one transformers folder, LoRA merged in.

`AutoModelForCausalLM.from_pretrained` loads it after `skipgpt.register()`, or with
trust_remote_code=True, and takes sparsity= there.
""" + options.examples(
    "skipgpt export out/nano-25 --merged --out out/nano-25-merged",
    "skipgpt export out/8b --merged --dtype bfloat16 --out out/8b-merged --json",
)


def run(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    merged: Annotated[bool, typer.Option("--merged", help="One folder with all weights.")] = False,
    sparsity: options.Sparsity = None,
    base: options.BaseOverride = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, export, print."""
    from skipgpt.errors import ConfigError

    if not merged:
        raise ConfigError("exporting", got="no form", expected="--merged")
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.export import export_merged

    export_merged(
        folder, out, sparsity=sparsity, base=base, overwrite=overwrite, device=device, dtype=dtype
    )
    options.emit({"out": str(out)}, as_json, f"{out}\nload it: see `skipgpt export --help`")
