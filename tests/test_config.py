"""Settings: the numbers of the recipes, strict reading, and which source wins."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipgpt.config import (
    MAX_SPARSITY,
    QUERY_VALUE_GATE,
    DataConfig,
    LoraStage,
    RouterConfig,
    RouterStage,
    TrainConfig,
    check_sparsity,
    recipe,
)
from skipgpt.config.settings import from_dict, override, read_toml, to_dict
from skipgpt.errors import ConfigError

# Recipes.


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
    assert (config.budget, config.stages) == ("flops", ("fit", "router", "lora"))
    assert config.router.normalize
    assert config.router.input == "layer_input"
    assert config.router.stand_in == 0.2
    assert (config.router_stage.noise, config.router_stage.distill) == (0.3, 1.0)
    assert config.router_stage.rate_width == 64


def test_a_recipe_takes_changes() -> None:
    assert recipe("paper", target_sparsity=0.4) == dataclasses.replace(
        recipe("paper"), target_sparsity=0.4
    )


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="'papper'; expected paper or default"):
        recipe("papper")


# Round trips.

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
            dropout=draw(st.floats(0, 1)),
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


# Reading is strict.


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("router_stage.alhpa", "router_stage.alpha"),
        ("router_stage.step", "router_stage.steps"),
        ("batchsize", "batch_size"),
        ("target_sparsty", "target_sparsity"),
        ("lora.rank", "lora_stage.rank"),
        ("block_size", "data.block_size"),
        ("data.blocksize", "data.block_size"),
        ("temperature_start", "router_stage.temperature_start"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(key: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(recipe("default"), {key: "1"})
    assert repr(key) in caught.value.got
    assert caught.value.todo == f"did you mean {meant!r}?"
    assert "router_stage.alpha" in caught.value.expected


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        override(recipe("default"), {"zzz": "1"})
    assert caught.value.todo == ""


@pytest.mark.parametrize("key", ["router_stage", "router_stage.alpha.deep", "seed.x", ""])
def test_a_key_that_stops_short_or_goes_too_deep_is_unknown(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        override(recipe("default"), {key: "1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("router_stage.steps", "many"),
        ("router_stage.steps", "1.5"),
        ("router_stage.steps", ""),
        ("router_stage.steps", "inf"),
        ("router_stage.steps", "nan"),
        ("router_stage.steps", True),
        ("router_stage.steps", [1]),
        ("router_stage.alpha", "eight"),
        ("router_stage.alpha", "nan"),
        ("router_stage.alpha", "inf"),
        ("router_stage.alpha", None),
        ("router_stage.schedule", 5),
        ("router_stage.start", "nowhere"),
        ("router.normalize", "maybe"),
        ("router.normalize", 2),
        ("router.head", "cubic"),
        ("stages", 5),
        ("stages", "router,heal"),
        ("stages", ""),
        ("stages", [["router"]]),
        ("report_to", 5),
        ("lora_stage.targets", [1, 2]),
        ("batch_size", "0"),
        ("batch_size", "-4"),
        ("accumulation", 0),
        ("log_every", 0),
        ("save_every", 0),
        ("lora_stage.rank", 0),
        ("data.block_size", 1),
        ("data.held_out", 0),
        ("data.held_out", 1),
        ("seed", -1),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        override(recipe("default"), {key: value})
    assert key.rsplit(".", 1)[-1].replace("_", " ").split()[-1] in str(caught.value)


@pytest.mark.parametrize("kind", [RouterStage, TrainConfig, LoraStage, DataConfig])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_no_number_is_negative_or_infinite(kind: type, value: float) -> None:
    for field in dataclasses.fields(kind):
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            with pytest.raises(ConfigError):
                kind(**{field.name: value})


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("False", False), ("1", True), ("0", False)]
)
def test_switches_read_as_on_a_command_line(value: str, expected: bool) -> None:
    config = override(recipe("default"), {"router.normalize": value})
    assert config.router.normalize is expected


def test_numbers_read_as_people_write_them() -> None:
    config = override(recipe("default"), {"router_stage.steps": "1e3", "lora_stage.rank": 8.0})
    assert (config.router_stage.steps, config.lora_stage.rank) == (1000, 8)
    assert type(config.router_stage.steps) is int


@pytest.mark.parametrize("text", ["router,lora", ["router", "lora"], ("router", "lora")])
def test_lists_read_by_commas_or_as_lists(text: Any) -> None:
    assert override(recipe("paper"), {"stages": text}).stages == ("router", "lora")


@pytest.mark.parametrize("value", [0, 0.25, MAX_SPARSITY])
def test_a_usable_sparsity_is_returned(value: float) -> None:
    assert check_sparsity(value) == value
    assert recipe("default", target_sparsity=value).target_sparsity == value


@pytest.mark.parametrize("value", [-0.01, 0.951, 1, 25, math.nan, math.inf, -math.inf])
def test_a_sparsity_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"expected a share from 0 to 0\.95"):
        check_sparsity(value)
    with pytest.raises(ConfigError):
        recipe("default", target_sparsity=value)


@pytest.mark.parametrize("key", ["router_stage.warmup", "lora_stage.warmup", "lora_stage.dropout"])
def test_a_share_above_one_is_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        override(recipe("default"), {key: 10})


def test_a_stage_is_not_run_twice() -> None:
    with pytest.raises(ConfigError):
        recipe("default", stages=("router", "lora", "router"))


@pytest.mark.parametrize("value", [5, [], "text", None])
def test_a_table_is_asked_for_where_one_belongs(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected a table"):
        from_dict(TrainConfig, {"router": value})


# TOML.


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


@pytest.mark.parametrize("content", [b"= 3", b"a = [", b"\xff\xfe", None], ids=str)
def test_a_file_that_is_no_toml_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"reading .*run\.toml: .*expected a TOML file"):
        read_toml(path)


@pytest.mark.parametrize("value", [False, "false"])
def test_a_retired_setting_may_say_what_is_so_anyway(value: object) -> None:
    settings = {"router_stage.static_blend": value, "router_stage.alpha": 20}
    assert override(recipe("default"), settings).router_stage.alpha == 20
    assert "static_blend" not in to_dict(override(recipe("default"), settings))["router_stage"]


def test_a_retired_setting_that_did_something_is_refused_with_what_replaces_it() -> None:
    with pytest.raises(ConfigError, match=r"static_blend.*got true.*stage fit starts better"):
        override(recipe("default"), {"router_stage.static_blend": "true"})


def test_the_greedy_start_of_version_0_1_is_read_where_it_would_do_nothing_and_refused_else() -> (
    None
):
    changed = override(recipe("default"), {"router_stage.start": "static"})
    assert "fit" in changed.stages
    with pytest.raises(ConfigError, match=r"static without stage fit.*put fit in front"):
        override(recipe("default"), {"router_stage.start": "static", "stages": ["router"]})


def test_a_retired_setting_that_does_nothing_alone_is_passed_over() -> None:
    changed = override(recipe("default"), {"router_stage.static_depth": 0.3})
    assert changed == recipe("default")
