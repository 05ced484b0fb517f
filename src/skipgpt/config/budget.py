"""What a sparsity is, what it counts, and which values are refused."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any, Literal

from skipgpt.config.checks import check_choice, check_choices, check_counts
from skipgpt.errors import ConfigError

Budget = Literal["modules", "flops", "time"]
"""What a budget counts: modules (paper), FLOPs, or seconds of this machine."""
BUDGETS: tuple[Budget, ...] = typing.get_args(Budget)
BUDGET_NOUNS: dict[str, str] = {"modules": "modules", "flops": "FLOPs", "time": "time"}
"""The noun for the unit of each budget, for use in a sentence."""
MAX_SPARSITY = 0.95


def check_sparsity(value: float, name: str = "sparsity", budget: str | None = None) -> float:
    """Return `value` if it is a number from 0 to 0.95, else raise ConfigError.

    The error names what `budget` counts; None where that is not known yet.
    """
    if not isinstance(value, int | float) or not 0 <= value <= MAX_SPARSITY:
        raise ConfigError(
            f"reading {name}",
            got=f"{value}",
            expected=f"a share from 0 to {MAX_SPARSITY}",
            todo=f"0.25 saves a quarter of the {BUDGET_NOUNS.get(str(budget), 'cost')}",
        )
    return float(value)


def check_budget(value: Any) -> Budget:
    """Return `value` if it is the name of a budget, else raise ConfigError."""
    todo = "flops counts what skipping really saves"
    return check_choice("reading budget", value, BUDGETS, todo=todo)


def as_budget(value: str | None) -> Budget | None:
    """The budget of this name, as `check_budget` has it; None stays None."""
    return None if value is None else check_budget(value)


def check_pair(sparsity: float | None, budget: str | None) -> None:
    """Raise ConfigError if a budget is unknown or comes without the sparsity that it counts."""
    if budget is None:
        return
    check_budget(budget)
    if sparsity is None:
        raise ConfigError(
            "reading budget",
            got=f"{budget!r} without a sparsity",
            expected="the sparsity that it counts",
            todo="give a sparsity beside it (--sparsity), or leave the budget out",
        )


@dataclass(frozen=True)
class TimedForward:
    """The forward whose seconds a budget in time counts.

    Attributes:
        phase: `prefill` of whole prompts, or `decode` of one token per row.
        batch_size: rows (B).
        context: tokens per row: of the prompt, or in the cache before the decoded token.
    """

    phase: Literal["prefill", "decode"] = "prefill"
    batch_size: int = 1
    context: int = 512

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "batch_size", "context")

    def __str__(self) -> str:
        """The forward in words."""
        rows = f"batch size {self.batch_size}"
        return f"{self.phase}, {rows}, context of {self.context:,} tokens"
