"""skipgpt train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skipgpt.cli import options

NAME = "train"
HELP = """Train routers on a base model, heal it with LoRA, calibrate, and write a checkpoint.

BASE is a hub id, a folder, `nano` (embedded), or a checkpoint to train further stages of.
Settings: recipe < --config < --set < named options; docs/training.md lists all of them.
""" + options.examples(
    "skipgpt train nano --data stdlib --sparsity 0.25 --steps 200,100 --out out/nano-25",
    "skipgpt train meta-llama/Llama-3.1-8B --data corpus/*.jsonl --recipe paper --out out/8b "
    "--device cuda",
)


def run(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Hub id, folder, checkpoint, or nano.")
    ],
    data: Annotated[
        list[str],
        typer.Option(help="Text, JSONL or parquet files, a folder, a hub id, or stdlib. Repeat."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    more: options.More = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of modules to skip.  [default: 0.25]")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(help="router, lora, joint; by commas.  [default: router,lora]")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Steps of the router stage, or of both: 200,100.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a forward.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens a row.")] = None,
    lr: Annotated[
        str | None, typer.Option(help="Rate of the router stage, or of both: 1e-2,1e-3.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="default or paper.  [default: default]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as key=value. Repeat.")
    ] = None,
    report_to: Annotated[
        str | None, typer.Option(help="Trackers of transformers: tensorboard, wandb …")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where it stopped.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of everything random.  [default: 0]")
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, train, print the result."""
    from skipgpt.checkpoint import is_checkpoint, read_info
    from skipgpt.config import recipe as named_recipe
    from skipgpt.settings import override, read_toml

    settings: dict[str, Any] = read_toml(config) if config else {}
    settings |= dict(_setting(pair) for pair in set_ or [])
    named = {
        "target_sparsity": sparsity,
        "stages": stages,
        "batch_size": batch_size,
        "data.block_size": block_size,
        "report_to": report_to,
        "seed": seed,
        **_for_stages("steps", steps),
        **_for_stages("learning_rate", lr),
    }
    settings |= {key: value for key, value in named.items() if value is not None}
    if is_checkpoint(base):
        settings.setdefault("target_sparsity", read_info(base).target_sparsity)
    name = recipe or str(settings.get("recipe", "default"))
    settings.pop("recipe", None)
    resolved = override(named_recipe(name), settings)
    options.begin(quiet=quiet, seed=resolved.seed)

    from skipgpt.training.run import train

    result = train(
        base,
        [*data, *(more or [])],
        out,
        resolved,
        device=device,
        dtype=dtype,
        quantize=quantize,
        resume=resume,
        overwrite=overwrite,
    )
    losses = "\n".join(f"  {name:8} {each}" for name, each in result.held_out.items())
    text = f"{out}\non held-out text:\n{losses}"
    options.emit(result.to_dict(), as_json, text)


def _setting(pair: str) -> tuple[str, str]:
    from skipgpt.errors import ConfigError

    key, equals, value = pair.partition("=")
    if not equals:
        raise ConfigError("reading --set", got=repr(pair), expected="key=value")
    return key, value


def _for_stages(name: str, values: str | None) -> dict[str, str]:
    """`200,100` for `steps` as the settings of both stages."""
    from skipgpt.errors import ConfigError

    given = values.split(",") if values else []
    keys = (f"router_stage.{name}", f"lora_stage.{name}")
    if len(given) > len(keys):
        raise ConfigError(
            f"reading {name}", got=repr(values), expected="one value, or two with a comma"
        )
    return dict(zip(keys, given, strict=False))
