"""Named recipes: `paper`, the paper's numbers, and `default`, what measured best."""

from __future__ import annotations

import dataclasses
from typing import Any

from skipgpt.config.schema import DataConfig, RouterConfig, TrainConfig
from skipgpt.config.stage_settings import ALL_LINEAR, LoraStage, RouterStage
from skipgpt.errors import ConfigError


def recipe(name: str, **changes: Any) -> TrainConfig:
    """The settings of a named recipe, with some fields of `TrainConfig` replaced.

    `paper` is every number that the paper states. `default` is what measured best at equal budget
    (docs/results.md).

    Raises:
        ConfigError: the recipe is unknown.
    """
    if name == "paper":
        config = TrainConfig(
            recipe="paper", data=DataConfig(block_size=4096), batch_size=16, max_grad_norm=1.0
        )
    elif name == "default":
        config = TrainConfig(
            recipe="default",
            budget="flops",
            stages=("fit", "lora"),
            router=RouterConfig(normalize=True, stand_in=0.2),
            router_stage=RouterStage(
                steps=200,
                learning_rate=6.3e-3,
                rate_width=64,
                schedule="cosine",
                budget_softness=0.1,
                noise=0.3,
                distill=1.0,
                start="keep",
                stand_in_rate=6e-4,
            ),
            lora_stage=LoraStage(
                steps=1_000, learning_rate=1e-3, dropout=0.0, distill=1.0, targets=ALL_LINEAR
            ),
        )
    else:
        raise ConfigError("choosing the recipe", got=repr(name), expected="paper or default")
    return dataclasses.replace(config, **changes)
