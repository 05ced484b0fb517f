"""skipgpt export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from skipgpt.cli.shared import options
from skipgpt.cli.shared.settings import data_config
from skipgpt.errors import ConfigError

NAME = "export"
HELP = """Write a checkpoint and its base model as one transformers folder, LoRA merged in.

--merged keeps the routers: `AutoModelForCausalLM.from_pretrained` loads the folder after
`skipgpt.register()`, or with trust_remote_code=True, and accepts sparsity= and budget=.

--static removes modules that hardly any token keeps, as measured on --data: an ordinary, smaller
model of the base's family, which plain transformers loads. --heal-steps trains LoRA on the smaller
model and merges it. Prints what was removed, and the loss before and after. With --format vllm,
layers may lack their attention or their MLP, so that more can be removed: vLLM loads it
(--trust-remote-code), transformers does not.
""" + options.examples(
    "skipgpt export out/nano-25 --merged --out out/nano-25-merged",
    "skipgpt export out/nano-25 --static --data stdlib --keep-rate 0.05 --heal-steps 200 "
    "--out out/nano-small",
)

_OF_STATIC = (
    *("text_field", "control_tokens", "keep_rate", "form", "heal_steps", "block_size", "seed"),
)


def run(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    more: options.More = None,
    merged: Annotated[bool, typer.Option("--merged", help="All weights and the routers.")] = False,
    static: Annotated[
        bool, typer.Option("--static", help="A smaller model without routers.")
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(help="For --static: text to measure on, as for train. Repeat."),
    ] = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    keep_rate: Annotated[
        float | None,
        typer.Option(
            help="For --static: remove a pair of adjacent modules if a token runs less than this "
            "share of their parameters; with --format vllm, a module that fewer tokens keep.  "
            "[default: 0.05]"
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="For --static: transformers or vllm.  [default: transformers]"
        ),
    ] = None,
    heal_steps: Annotated[
        int | None,
        typer.Option(min=1, help="For --static: LoRA steps that heal, of 16 rows each."),
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="For --static: tokens per row.  [default: 256]")
    ] = None,
    sparsity: options.Sparsity = None,
    budget: options.Budget = None,
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
    if merged == static:
        got = "both forms" if merged else "no form"
        raise ConfigError("exporting", got=got, expected="either --merged or --static")
    sources = [*(data or []), *(more or [])]
    if static != bool(sources):
        got = "--static without --data" if static else "--merged with --data"
        raise ConfigError("exporting", got=got, expected="text to measure on, for --static alone")
    if merged:
        options.refuse_given(context, _OF_STATIC, "exporting with --merged", "it with --static")
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.config import ALL_LINEAR, as_budget, recipe
    from skipgpt.export import export_merged, export_static

    common: dict[str, Any] = {
        "sparsity": sparsity, "budget": as_budget(budget), "base": base, "overwrite": overwrite,
        "device": device, "dtype": dtype,
    }  # fmt: skip
    if merged:
        export_merged(folder, out, **common)
        options.emit({"out": str(out)}, as_json, f"{out}\nload it: see `skipgpt export --help`")
        return
    lora = dataclasses.replace(recipe("default").lora_stage, targets=ALL_LINEAR)
    result = export_static(
        folder,
        out,
        data=sources,
        form="transformers" if form is None else form,  # type: ignore[arg-type]
        keep_rate=0.05 if keep_rate is None else keep_rate,
        cutting=data_config(
            block_size=block_size, text_field=text_field, control_tokens=control_tokens
        ),
        heal=dataclasses.replace(lora, steps=heal_steps) if heal_steps else None,
        seed=seed,
        **common,
    )
    options.emit(result.to_dict(), as_json, f"{out}\n{result}")
