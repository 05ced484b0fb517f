"""What a config refuses, and what it says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from skipgpt.config import (
    MAX_SPARSITY,
    DataConfig,
    LoraStage,
    RouterStage,
    TrainConfig,
    check_sparsity,
    recipe,
)
from skipgpt.config.settings import from_dict, override, read_toml, to_dict
from skipgpt.errors import ConfigError


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


@pytest.mark.parametrize(("name", "noun"), [("default", "FLOPs"), ("paper", "modules")])
def test_a_target_that_is_refused_is_told_in_the_unit_of_the_recipe(name: str, noun: str) -> None:
    with pytest.raises(ConfigError, match=f"; 0.25 saves a quarter of the {noun}$"):
        recipe(name, target_sparsity=0.96)


@pytest.mark.parametrize("key", ["router_stage.warmup", "lora_stage.warmup", "lora_stage.dropout"])
def test_a_share_above_one_is_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        override(recipe("default"), {key: 10})


@pytest.mark.parametrize("key", ["router_stage.warmup", "lora_stage.warmup", "lora_stage.dropout"])
def test_a_share_that_may_not_be_the_whole_is_refused_at_one(key: str) -> None:
    """Dropout would leave nothing to scale up, and a warm-up of 1 would be one step."""
    with pytest.raises(ConfigError, match=r"got 1(\.0)?; expected a share of 0 or more, below 1"):
        override(recipe("default"), {key: 1})
    with pytest.raises(ConfigError):
        override(recipe("default"), {key: "1.0"})
    override(recipe("default"), {key: 0.99})


def test_the_loss_may_be_distillation_alone() -> None:
    assert override(recipe("paper"), {"lora_stage.distill": 1}).lora_stage.distill == 1


def test_a_stage_is_not_run_twice() -> None:
    with pytest.raises(ConfigError):
        recipe("default", stages=("router", "lora", "router"))


@pytest.mark.parametrize("value", [5, [], "text", None])
def test_a_table_is_asked_for_where_one_belongs(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected a table"):
        from_dict(TrainConfig, {"router": value})


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
