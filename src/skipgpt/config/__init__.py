"""Settings: what they are, how they check themselves, and the named recipes.

Where settings meet, the later wins: recipe < TOML file < `--set key=value` < named options.

    schema.py          a run and its parts, as dataclasses that check themselves
    stage_settings.py  the stages that `train` runs
    budget.py          what a sparsity counts, and which values are refused
    recipes.py         `paper` and `default`
    settings.py        configs from and to JSON, TOML and `key=value`
    checks.py          checks that the dataclasses share
"""

from skipgpt.config.budget import (
    BUDGET_NOUNS,
    BUDGETS,
    MAX_SPARSITY,
    Budget,
    TimedForward,
    as_budget,
    check_budget,
    check_pair,
    check_sparsity,
)
from skipgpt.config.recipes import recipe
from skipgpt.config.schema import DataConfig, Placement, RouterConfig, Stage, TrainConfig
from skipgpt.config.stage_settings import (
    ALL_LINEAR,
    QUERY_VALUE_GATE,
    FitStage,
    LoraStage,
    RouterStage,
)

__all__ = [
    "ALL_LINEAR",
    "BUDGETS",
    "BUDGET_NOUNS",
    "MAX_SPARSITY",
    "QUERY_VALUE_GATE",
    "Budget",
    "DataConfig",
    "FitStage",
    "LoraStage",
    "Placement",
    "RouterConfig",
    "RouterStage",
    "Stage",
    "TimedForward",
    "TrainConfig",
    "as_budget",
    "check_budget",
    "check_pair",
    "check_sparsity",
    "recipe",
]
