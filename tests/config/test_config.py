"""Recipes and settings, written and read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipgpt.config import (
    ALL_LINEAR,
    MAX_SPARSITY,
    QUERY_VALUE_GATE,
    DataConfig,
    LoraStage,
    RouterConfig,
    RouterStage,
    TrainConfig,
    recipe,
)
from skipgpt.config.settings import from_dict, override, read_toml, to_dict
from skipgpt.errors import ConfigError


def test_the_paper_recipe_is_every_number_of_the_paper() -> None:
    config = recipe("paper")
    assert config.router == RouterConfig(head="linear", input="layer_input", normalize=False)
    assert config.router.kv == "dense"
    stage = config.router_stage
    assert (stage.steps, stage.learning_rate, stage.alpha) == (10_000, 2e-3, 8.0)
    assert (stage.temperature_start, stage.temperature_end) == (5.0, 1.0)
    assert stage.start == "random"
    lora = config.lora_stage
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.1)
    assert lora.targets == QUERY_VALUE_GATE
    assert (lora.learning_rate, lora.schedule, lora.warmup) == (2e-4, "cosine", 0.1)
    assert lora.steps == 10_000
    assert (config.batch_size, config.accumulation, config.data.block_size) == (16, 1, 4096)
    assert config.stages == ("router", "lora")
    assert config.recipe == "paper"


def test_the_default_recipe_fits_before_it_trains_by_kl_with_little_noise() -> None:
    config = recipe("default")
    assert config.recipe == "default"
    assert (config.budget, config.stages) == ("flops", ("fit", "lora"))
    assert config.router.normalize
    assert config.router.input == "layer_input"
    assert config.router.stand_in == 0.2
    assert (config.router_stage.noise, config.router_stage.distill) == (0.3, 1.0)
    assert config.router_stage.rate_width == 64
    healing = config.lora_stage
    assert (healing.distill, healing.dropout, healing.targets) == (1.0, 0.0, ALL_LINEAR)


def test_a_recipe_takes_changes() -> None:
    assert recipe("paper", target_sparsity=0.4) == dataclasses.replace(
        recipe("paper"), target_sparsity=0.4
    )


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="'papper'; expected paper or default"):
        recipe("papper")


_share = st.floats(0, MAX_SPARSITY)


_size = st.integers(1, 10**6)


_positive = st.floats(0, 1e6, allow_nan=False)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    return recipe(
        draw(st.sampled_from(["paper", "default"])),
        target_sparsity=draw(_share),
        stages=tuple(
            draw(st.lists(st.sampled_from(["router", "lora", "joint"]), min_size=1, unique=True))
        ),
        router=RouterConfig(
            head=draw(st.sampled_from(["linear", "mlp"])),
            input=draw(st.sampled_from(["layer_input", "module_input"])),
            normalize=draw(st.booleans()),
        ),
        router_stage=RouterStage(
            steps=draw(_size),
            learning_rate=draw(_positive),
            alpha=draw(_positive),
        ),
        lora_stage=LoraStage(
            rank=draw(_size),
            dropout=draw(st.floats(0, 1, exclude_max=True)),
            targets=tuple(draw(st.lists(st.sampled_from(["q_proj", "up_proj", "down_proj"])))),
        ),
        data=DataConfig(
            block_size=draw(st.integers(2, 10**5)),
            held_out=draw(st.floats(1e-6, 0.999)),
        ),
        batch_size=draw(_size),
        seed=draw(st.integers(0, 2**31)),
        report_to=tuple(draw(st.lists(st.sampled_from(["tensorboard", "wandb"]), unique=True))),
    )


@given(configs())
def test_a_config_survives_json(config: TrainConfig) -> None:
    text = json.dumps(to_dict(config), allow_nan=False)
    assert from_dict(TrainConfig, json.loads(text)) == config


@given(configs(), st.floats(0, 100), st.integers(1, 99))
def test_overriding_changes_what_is_named_and_nothing_else(
    config: TrainConfig, alpha: float, rank: int
) -> None:
    changed = override(config, {"router_stage.alpha": str(alpha), "lora_stage.rank": str(rank)})
    assert changed.router_stage.alpha == alpha
    assert changed.lora_stage.rank == rank
    expected = dataclasses.replace(
        config,
        router_stage=dataclasses.replace(config.router_stage, alpha=alpha),
        lora_stage=dataclasses.replace(config.lora_stage, rank=rank),
    )
    assert changed == expected


def test_absent_settings_keep_their_defaults() -> None:
    assert from_dict(TrainConfig, {}) == TrainConfig()
    assert from_dict(RouterConfig, {"head": "mlp"}) == RouterConfig(head="mlp")


def test_a_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe("default").seed = 1


def test_toml_tables_are_dotted_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'batch_size = 4\nstages = ["router"]\n[router_stage]\nalpha = 20\n[data]\nblock_size = 64\n'
    )
    settings = read_toml(path)
    assert settings == {
        "batch_size": 4,
        "stages": ["router"],
        "router_stage.alpha": 20,
        "data.block_size": 64,
    }
    config = override(recipe("paper"), settings)
    assert config.router_stage.alpha == 20
    assert config.stages == ("router",)
