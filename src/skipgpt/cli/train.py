"""skipgpt train."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from skipgpt.cli.shared import options, settings
from skipgpt.config import TrainConfig
from skipgpt.errors import ConfigError

NAME = "train"
HELP = """Fit or train routers on a base model, heal it with LoRA, and write a checkpoint.

BASE is a hub id, a folder, a GGUF file, `nano` (embedded), or a checkpoint to train further
(with --stages, since stage fit is for base models).
With --dry-run, BASE may be a shape of `skipgpt bench`, or a folder with nothing but config.json.
Settings: recipe < --config < --set < named options; docs/settings.md lists all of them.
""" + options.examples(
    "skipgpt train nano --data stdlib --sparsity 0.25 --steps 100 --out out/nano-25",
    "skipgpt train meta-llama/Llama-3.1-8B --data corpus/*.jsonl --recipe paper --out out/8b "
    "--device cuda",
    "skipgpt train llama-3.1-70b --dry-run --layout fsdp2 --processes 8 --recipe paper "
    "--device cuda --set activation_checkpointing=true",
)


def run(
    context: typer.Context,
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Hub id, folder, GGUF file, checkpoint, or nano.")
    ],
    data: options.DataIfAny = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoint.")] = None,
    more: options.More = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Share of --budget to save.  [default: 0.25; of a checkpoint, its own]"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="What --sparsity counts: modules, as in the paper; flops; or time, as measured by "
            "`skipgpt profile`.  [default: as the recipe: paper modules; default flops, or "
            "modules, with a warning, if skipping cannot save so many]"
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="fit, router, lora, joint; comma-separated.  [default: as the recipe: default "
            "fit,lora, paper router,lora]"
        ),
    ] = None,
    steps: settings.Steps = None,
    batch_size: settings.BatchSize = None,
    block_size: settings.BlockSize = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    lr: settings.Lr = None,
    recipe: settings.Recipe = None,
    config: settings.Config = None,
    set_: settings.Set = None,
    report_to: Annotated[
        str | None, typer.Option(help="Trackers of transformers: tensorboard, wandb …")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: options.Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run would need, without starting it.")
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            help="For --dry-run: single, ddp, fsdp2, zero2 or zero3.  "
            "[default: single; ddp for several processes]"
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="For --dry-run: number of processes, one device each.  [default: 1]"),
    ] = None,
    as_json: options.Json = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed.  [default: 0]")] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, train, print the result."""
    from skipgpt.checkpoint.folder import is_checkpoint, read_info
    from skipgpt.config import recipe as named_recipe
    from skipgpt.config.settings import override

    named = {
        "recipe": recipe,
        "target_sparsity": sparsity,
        "budget": budget,
        "stages": stages,
        "batch_size": batch_size,
        "data.block_size": block_size,
        "data.text_field": text_field,
        "data.control_tokens": control_tokens or None,
        "report_to": report_to,
        "seed": seed,
    }
    given = settings.gathered(config, set_, named)
    of = named_recipe(str(given.pop("recipe", "default")))
    for name, values in (("steps", steps), ("learning_rate", lr)):
        given |= settings.for_stages(name, values, given.get("stages", of.stages))
    if is_checkpoint(base):
        info = read_info(base)
        if given.setdefault("budget", info.budget) == info.budget:
            given.setdefault("target_sparsity", info.target_sparsity)
    resolved = override(of, given)
    if dry_run:
        doing, right = "estimating what a run needs", "weights as they are trained on"
        options.refuse_given(context, ("quantize",), doing, right)
    else:
        _check_options_of_training(context, data, out)
    options.begin(quiet=quiet, seed=resolved.seed)
    if dry_run:
        count = 1 if processes is None else processes
        found = _needs(base, resolved, layout, count, device, dtype)
        options.emit(found.to_dict(), as_json, str(found))
        return

    from skipgpt.training.run import train

    result = train(
        base,
        [*(data or []), *(more or [])],
        cast("Path", out),
        resolved,
        device=device,
        dtype=dtype,
        quantize=quantize,
        resume=resume,
        overwrite=overwrite,
        or_modules="budget" not in given,
    )
    losses = "\n".join(
        f"  {name:8} {each}" + (f"; {each.closeness}" if each.closeness else "")
        for name, each in result.held_out.items()
    )
    options.emit(result.to_dict(), as_json, f"{out}\non held-out text:\n{losses}")


def _check_options_of_training(
    context: typer.Context, data: list[str] | None, out: Path | None
) -> None:
    """Raise a ConfigError for an option that training does not take, or one that it lacks."""
    start = "start several processes by `torchrun` or `accelerate launch` (docs/scaling.md)"
    of_estimates = ("layout", "processes")
    options.refuse_given(context, of_estimates, "training", "--dry-run beside it", start)
    for name, value in (("--data", data), ("--out", out)):
        if not value:
            raise ConfigError(
                "training", got=f"no {name}", expected="--data and --out", todo=f"give {name}"
            )


def _needs(
    base: str, config: TrainConfig, layout: str | None, processes: int, device: str, dtype: str
) -> Any:
    from skipgpt.benchmark.shapes import shape_or_base
    from skipgpt.checkpoint.folder import base_of, is_checkpoint, read_info
    from skipgpt.cost.memory import check_layout
    from skipgpt.model.base import choose_dtype
    from skipgpt.training.dry_run import dry_run

    if is_checkpoint(base):
        info = read_info(base)
        base, config = base_of(info, base), dataclasses.replace(config, router=info.router)
    chosen = check_layout(layout or ("single" if processes == 1 else "ddp"), processes)
    kind = choose_dtype(dtype, device)
    return dry_run(
        shape_or_base(base), config, layout=chosen, processes=processes, dtype=kind, device=device
    )
