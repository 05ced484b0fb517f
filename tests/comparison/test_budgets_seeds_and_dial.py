"""Several budgets and seeds in one comparison, what is refused, and what is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from comparisons import by_method, setup_of
from runs import COMPARED, compared, stopping_at
from skipgpt.checkpoint.loading import load
from skipgpt.comparison import compare as comparing
from skipgpt.comparison.result import Comparison
from skipgpt.errors import ConfigError, StoppedError
from skipgpt.evaluation.perplexity import perplexity


def test_seeds_give_rows_of_their_own_where_something_is_random(base: Path, tmp_path: Path) -> None:
    found = compared(base, tmp_path / "out", "dense", "router", "sleb", seeds=(0, 1))
    assert [(row.method, row.seed) for row in found.rows] == [
        *(("dense", 0), ("router", 0), ("router", 1), ("sleb", 0)),
    ]
    _, router, sleb = found.lines()
    first, second = (row.excess_nll for row in router.rows)
    assert first != second
    assert router.excess == pytest.approx((first + second) / 2)
    assert router.spread == pytest.approx(abs(first - second) / 2)
    assert sleb.spread == 0


def test_the_dial_reads_every_checkpoint_at_other_budgets(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    options: dict[str, Any] = {"dial": (0.0, 0.5)}
    found = compared(base, tmp_path / "out", "router", "sleb", "random", **options)
    assert [(row.method, row.target) for row in found.rows] == [
        ("router", 0.25),
        ("router (dial of 0.25)", 0.0),
        ("router (dial of 0.25)", 0.5),
        ("sleb", 0.25),
        ("random", 0.25),
    ]
    router, closed, half, *_ = found.rows
    assert (closed.sparsity["module"], closed.excess_nll) == (0, pytest.approx(0, abs=1e-6))
    assert half.sparsity["module"] == pytest.approx(0.5, abs=0.1)
    assert closed.checkpoint == half.checkpoint == router.checkpoint
    model, _ = load(str(router.checkpoint), sparsity=0.5)
    assert half.nll_per_token == perplexity(model, setup_of(base).held_out()).nll_per_token
    before = list(made)
    assert compared(base, tmp_path / "out", "router", "sleb", "random", **options) == found
    assert made == before


def test_several_budgets_come_in_order(base: Path, tmp_path: Path) -> None:
    found = compared(base, tmp_path / "out", "dense", "sleb", "llm-drop", sparsities=(0.5, 0.2))
    assert [(row.method, row.target) for row in found.rows] == [
        *(("dense", 0.0), ("sleb", 0.5), ("sleb", 0.2), ("llm-drop", 0.5), ("llm-drop", 0.2)),
    ]


def test_what_skips_nothing_is_trained_once_for_all_budgets(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    found = compared(base, tmp_path / "out", "dense", "dense+lora", sparsities=(0.25, 0.5))
    assert made == ["heal"]
    assert [(row.method, row.target) for row in found.rows] == [("dense", 0), ("dense+lora", 0)]


def test_sampled_routes_are_the_same_routers_drawn_anew(base: Path, everything: Comparison) -> None:
    rows = by_method(everything)
    row, sampled = rows["router@paper"], rows["router@paper (sampled)"]
    assert (sampled.checkpoint, sampled.seed) == (row.checkpoint, row.seed)
    assert sampled.nll_per_token != row.nll_per_token
    assert "drawn anew" in sampled.note


def test_a_wrong_last_method_is_found_before_the_first_one_runs(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    for wrong in ("roter", "router@papper", "router:alhpa=3"):
        with pytest.raises(ConfigError):
            compared(base, tmp_path / "out", "router", wrong)
    assert made == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "asked", "unit"),
    [
        ("default", {}, None, "flops"),
        ("paper", {}, None, "modules"),
        ("default", {"budget": "modules"}, None, "modules"),
        ("default", {"budget": "modules"}, "flops", "flops"),
    ],
)
def test_budgets_are_in_the_unit_of_the_settings_or_the_recipe(
    base: Path, tmp_path: Path, recipe: str, settings: dict[str, Any], asked: Any, unit: str
) -> None:
    with mock.patch.object(comparing, "plot"):
        found = comparing.compare(
            str(base),
            [str(base.parent / "stories.jsonl")],
            tmp_path / "out",
            ["sleb"],
            recipe=recipe,
            budget=asked,
            settings=COMPARED | settings,
        )
    assert found.facts["budget"] == unit
    words = {"flops": "25.0% of FLOPs", "modules": "25.0% of modules"}
    assert words[unit] in found.to_terminal()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsities": ()}, "nothing to compare"),
        ({"seeds": ()}, "nothing to compare"),
        ({"sparsities": (0.25, 25)}, "0 to 0.95"),
        ({"dial": (1.5,)}, "0 to 0.95"),
        ({"budget": "joules"}, "expected modules, flops or time"),
        ({"settings": {"budget": "joules"}}, "expected modules, flops or time"),
        ({"settings": {"target_sparsity": 0.4}}, "--sparsity"),
        ({"recipe": "papper"}, "paper or default"),
        ({"settings": {"alhpa": 1}}, "alpha"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(
    base: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(base, tmp_path / "out", "router", **options)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_method_is_nothing_to_compare(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        compared(base, tmp_path / "out")


def test_an_interrupted_training_goes_on(base: Path, tmp_path: Path, made: list[str]) -> None:
    (straight,) = compared(base, tmp_path / "straight", "router").rows
    with stopping_at(2), pytest.raises(StoppedError):
        compared(base, tmp_path / "out", "router")
    (resumed,) = compared(base, tmp_path / "out", "router").rows
    assert resumed.nll_per_token == straight.nll_per_token


@pytest.mark.parametrize("method", ["sleb+lora", "dense+lora", "mod"])
def test_an_interrupted_method_of_another_kind_goes_on_too(
    method: str, base: Path, tmp_path: Path, made: list[str]
) -> None:
    straight = compared(base, tmp_path / "straight", method).rows
    stage = "lora" if method.endswith("+lora") else "router"
    refused = pytest.raises(StoppedError, match="the same command goes on from it")
    with stopping_at(1, stage), refused:
        compared(base, tmp_path / "out", method)
    assert list((tmp_path / "out").rglob("checkpoint-1"))
    resumed = compared(base, tmp_path / "out", method).rows
    assert [row.nll_per_token for row in resumed] == [row.nll_per_token for row in straight]
    assert not list((tmp_path / "out").rglob("checkpoint-*"))


def test_a_schedule_that_does_not_exist_is_found_before_anything_runs(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    with pytest.raises(ConfigError, match="reading schedule"):
        compared(base, tmp_path / "out", "router", "coupled:router_stage.schedule=zigzag")
    assert made == []


def test_the_recipe_paper_is_sampled_after_healing_too(base: Path, tmp_path: Path) -> None:
    rows = compared(base, tmp_path / "out", "router+lora@paper").rows
    assert [row.method for row in rows] == ["router+lora@paper", "router+lora@paper (sampled)"]
