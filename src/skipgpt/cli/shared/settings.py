"""The training options that `train` and `compare` share, and how they become settings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from skipgpt.errors import ConfigError

T = TypeVar("T")

Steps = Annotated[
    str | None,
    typer.Option(help="Steps of each stage that trains, or of router and LoRA: 200,100."),
]
BatchSize = Annotated[int | None, typer.Option(help="Batch size.")]
BlockSize = Annotated[int | None, typer.Option(help="Tokens per row.")]
Lr = Annotated[
    str | None,
    typer.Option(help="Learning rate of the stage that trains, or of router and LoRA: 1e-2,1e-3."),
]
Recipe = Annotated[str | None, typer.Option(help="default or paper.  [default: default]")]
Config = Annotated[Path | None, typer.Option(help="TOML file with settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, as key=value. Repeat.")]


def data_config(**given: Any) -> Any:
    """Build a `DataConfig`; a setting that is None keeps its default."""
    from skipgpt.config import DataConfig

    return DataConfig(**{name: value for name, value in given.items() if value is not None})


def gathered(config: Path | None, pairs: list[str] | None, named: dict[str, Any]) -> dict[str, Any]:
    """Merge dotted settings, the later winning: TOML file < `--set` < named options.

    Raises:
        ConfigError: the file cannot be read, or a pair has no equals sign.
    """
    from skipgpt.config.settings import parse_pair, read_toml

    found: dict[str, Any] = read_toml(config) if config else {}
    found |= dict(parse_pair(pair) for pair in pairs or [])
    return found | {key: value for key, value in named.items() if value is not None}


def for_stages(
    name: str, values: str | None, stages: str | Collection[str] = ("router", "lora")
) -> dict[str, str]:
    """Turn `200,100` for `steps`, or rates for `learning_rate`, into settings of the stages.

    Of two values the first is of the routers, the second of LoRA. One number of steps is of both;
    one rate is of the routers where they train. Stage joint has one number of steps and both rates.

    Raises:
        ConfigError: more values than stages that have one.
    """
    given = values.split(",") if values else []
    stages = stages.split(",") if isinstance(stages, str) else stages
    of_lora = {"lora", "joint"} if name == "learning_rate" else {"lora"}
    keys = [f"router_stage.{name}"] * bool({"router", "joint"} & set(stages))
    keys += [f"lora_stage.{name}"] * bool(of_lora & set(stages))
    if len(given) > len(keys):
        raise ConfigError(
            f"reading {name} of the stages {', '.join(stages)}",
            got=repr(values),
            expected=f"a value for each of {', '.join(keys)}" if keys else "none: they have none",
        )
    if name == "steps" and len(given) == 1:
        given *= len(keys)
    return dict(zip(keys, given, strict=False))


def numbers(name: str, values: str, kind: Callable[[str], T]) -> list[T]:
    """Parse comma-separated numbers: int makes whole ones, float any."""
    whole = "whole numbers with commas, as in 0,1"
    expected = whole if kind is int else "numbers with commas, as in 0.25,0.4"
    try:
        return [kind(value) for value in values.split(",")]
    except ValueError as error:
        raise ConfigError(f"reading {name}", got=repr(values), expected=expected) from error
