"""skipgpt convert."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from skipgpt.cli.shared import options
from skipgpt.cli.shared.settings import data_config
from skipgpt.errors import SkipGPTError

NAME = "convert"
HELP = """Turn a router file of the paper's authors into a checkpoint.

Reads the linear and the two-layer head, stage-2 keys with LoRA, and full state dicts; never
executes what a pickle holds. With --data the thresholds are calibrated too.
""" + options.examples(
    "skipgpt convert router.pth --base meta-llama/Llama-3.1-8B --out out/llama-official",
    "skipgpt convert stage2.pth --base meta-llama/Llama-2-7b-hf --data corpus.txt --out out/7b",
)


_OF_CALIBRATION = ("text_field", "control_tokens", "block_size", "seed", "device", "dtype")


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help=".pth, .pt, .bin or .safetensors.")],
    base: Annotated[str, typer.Option(help="The base model it was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text to calibrate on; without it, argmax routing.")
    ] = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    block_size: Annotated[
        int | None, typer.Option(help="With --data: tokens per row.  [default: 256]")
    ] = None,
    sparsity: Annotated[
        float, typer.Option(help="Target to calibrate to, as a share of --budget.")
    ] = 0.25,
    budget: Annotated[
        str, typer.Option(help="What --sparsity counts: modules, as in the paper; flops or time.")
    ] = "modules",
    lora: Annotated[Path | None, typer.Option(help="File with LoRA tensors, if separate.")] = None,
    lora_alpha: Annotated[int, typer.Option(help="LoRA alpha, which the file lacks.")] = 32,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, convert, print."""
    if not data:
        doing, right = "converting without calibration", "--data beside it"
        options.refuse_given(context, _OF_CALIBRATION, doing, right, "give --data SRC")
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.config import check_budget
    from skipgpt.convert import convert
    from skipgpt.evaluation.calibrate import calibrate_checkpoint

    info = convert(
        file,
        base,
        out,
        lora=lora,
        lora_alpha=lora_alpha,
        target_sparsity=sparsity,
        budget=check_budget(budget),
        overwrite=overwrite,
    )
    cutting = data_config(
        block_size=block_size, text_field=text_field, control_tokens=control_tokens
    )
    if data:
        try:
            info = calibrate_checkpoint(
                out, data, cutting, target=sparsity, device=device, dtype=dtype
            )
        except SkipGPTError as error:
            if overwrite:
                raise
            there = f"{out} holds the uncalibrated checkpoint: add --overwrite"
            raise error.advising("; ".join(filter(None, (error.todo, there)))) from error
    stages = ", ".join(info.stages)
    text = f"{out}\nhead {info.router.head}, stages {stages}, base {info.base}"
    options.emit(dataclasses.asdict(info), as_json, text)
