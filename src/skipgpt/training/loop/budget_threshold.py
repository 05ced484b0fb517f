"""The threshold of stage `lora`, which follows the budget.

Healing changes what routers read. At one threshold fewer and fewer modules would be skipped, and
the one that calibration sets at the end would be one that LoRA never trained at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from skipgpt.cost import Savings
from skipgpt.model.state import RoutingState
from skipgpt.routing.decision import MODULES, Site, Threshold
from skipgpt.system.distributed import all_gather

PACE = 0.1
"""Step size: share of the distance to the newest step's own threshold."""
HALVINGS = 30
"""Bisection steps over the range of margins."""


class BudgetThreshold(TrainerCallback):  # type: ignore[misc]
    """Moves a model's threshold after each step towards where that step would meet the target.

    A model that was never calibrated, as static removal gives, keeps its threshold, and so does one
    under another rule. The target is in the unit of the savings.

    Attributes:
        used: the threshold that the newest forward decided at; None under another rule.
    """

    def __init__(self, state: RoutingState, target: float, savings: Savings) -> None:
        self.state, self.target, self.savings = state, target, savings
        self.used: float | None = None
        self._seen: list[Tensor] = []

    def observe(self, margins: Tensor) -> None:
        """Note the margins [M, N] of one forward of the step."""
        rule = self.state.rule
        self.used = rule.value if isinstance(rule, Threshold) else None
        self._seen.append(margins)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the threshold, unless none comes nearer to the target."""
        seen, self._seen = self._seen, []
        rule = self.state.rule
        if not seen or self.target == 0 or self.state.curves is None:
            return
        if isinstance(rule, Threshold) and rule.value > -torch.inf:
            met = self._met(all_gather(torch.cat(seen, dim=1)), rule.value)
            self.state.rule = Threshold(rule.value + PACE * (met - rule.value))

    def _met(self, margins: Tensor, now: float) -> float:
        """The threshold at which margins [M, N] meet the target, or `now` if none is better.

        Where margins are equal the share jumps, and no threshold meets the target.
        """

        def missed(threshold: float) -> float:
            rates = (margins > threshold).float().mean(-1).tolist()
            sites = [Site(n // 2, MODULES[n % 2]) for n in range(len(rates))]
            return self.savings.share(dict(zip(sites, rates, strict=True))) - self.target

        low, high = margins.min().item() - 1, margins.max().item() + 1
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if missed(middle) < 0 else (low, middle)
        return min((now, low, high), key=lambda each: abs(missed(each)))
