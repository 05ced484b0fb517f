"""Settings: what they are, how they check themselves, and the named recipes.

Where settings meet, the later wins: recipe < TOML file < `--set key=value` < named options.
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
