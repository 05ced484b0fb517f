"""The threshold of stage `lora`, which follows the budget.

Healing changes what routers read. At one threshold fewer and fewer modules would be skipped, and
the one that calibration sets at the end would be one that LoRA never trained at.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from skipgpt.model.state import RoutingState
from skipgpt.routing.decision import Threshold
from skipgpt.system.distributed import all_gather
from skipgpt.training.loop.routing_metrics import threshold_for

PACE = 0.1
"""The share of its way to what the newest step asks for by which the threshold moves."""


class BudgetThreshold(TrainerCallback):  # type: ignore[misc]
    """Moves a model's threshold after each step towards where that step would meet the target.

    Args:
        state: of the model; a rule other than a `Threshold` stays as it is.
        target: the share to save.
        weights: [M] what each module saves if every token skips it, in the unit of the target; all
            equal if None.
        overhead: what routing adds in that unit.
    """

    def __init__(
        self, state: RoutingState, target: float, weights: Tensor | None, overhead: float
    ) -> None:
        self.state, self.target = state, target
        self.weights, self.overhead = weights, overhead
        self._seen: list[Tensor] = []

    @property
    def value(self) -> float:
        """The threshold of the next step; `-inf` where everything is kept, or by another rule."""
        rule = self.state.rule
        return rule.value if isinstance(rule, Threshold) else -math.inf

    def observe(self, margins: Tensor) -> None:
        """Note the margins [M, N] of one forward of the step."""
        self._seen.append(margins)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the threshold, unless everything is kept."""
        seen, self._seen = self._seen, []
        if seen and self.target > 0 and math.isfinite(self.value):
            margins = all_gather(torch.cat(seen, dim=1))
            met = threshold_for(margins, self.target, self.weights, self.overhead)
            self.state.rule = Threshold(self.value + PACE * (met - self.value))
