"""Grids that cannot be measured."""

from __future__ import annotations

from typing import get_args

import pytest

from skipgpt.benchmark.executions import EXECUTIONS, Timed
from skipgpt.benchmark.grid import Grid
from skipgpt.errors import ConfigError


def test_what_cannot_be_measured_is_refused() -> None:
    for wrong in (
        {"phases": ("warp",)},
        {"executions": ("magic",)},
        {"batch_sizes": (0,)},
        {"repeats": 0},
        {"decode_tokens": 0},
        {"sparsities": (1.5,)},
        {"sparsities": (0.5,), "budget": "watts"},
        {"phases": ("prefill", "lora_step"), "prompt_tokens": (1, 8)},
    ):
        with pytest.raises(ConfigError):
            Grid(**wrong)


def test_a_budget_comes_with_the_sparsities_that_it_counts() -> None:
    with pytest.raises(ConfigError, match="'flops' without a sparsity"):
        Grid(budget="flops")


def test_each_execution_is_described() -> None:
    assert set(EXECUTIONS) == set(get_args(Timed))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("phases", "prefill"),
        ("batch_sizes", 1),
        ("prompt_tokens", 8),
        ("sparsities", 0.4),
        ("executions", "sparse"),
    ],
)
def test_of_each_kind_there_is_one_at_least_and_none_twice(name: str, value: object) -> None:
    said = name.replace("_", " ")
    with pytest.raises(ConfigError, match=f"reading {said}: got none; expected one or more"):
        Grid(**{name: ()})
    with pytest.raises(ConfigError, match=f"got {value}, {value}; expected .* each once"):
        Grid(**{name: (value, value)})
