"""Known failures of router training, detected from its log lines, with a remedy for each.

Only the second half of a stage is judged: before that, noise is high and the budget is still being
approached, so warnings would be false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from skipgpt.analysis.health import ALWAYS, COLLAPSED
from skipgpt.config import BUDGET_NOUNS

MODERATE = 0.4
"""Up to this sparsity the paper's routers keep the base model's quality after healing."""
HIGH_EXCESS = math.log(4)
"""Nats per token above the dense model: four times its perplexity."""
SWING = 0.05
"""Limit on the standard deviation of the sparsity across batches."""
MISS = 0.03
"""Limit on the distance of the mean sparsity from the target."""
NEWEST = 5
"""At most this many of the newest lines are judged."""
ENOUGH = 3
"""At least this many lines are needed: one alone may cover a single batch."""


@dataclass(frozen=True)
class Failure:
    """A known failure mode.

    Attributes:
        name: `loss`, `swing`, `missed` or `collapsed`.
        seen: what was measured, and the limit.
        todo: what to change.
    """

    name: str
    seen: str
    todo: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.seen} {self.todo}"


def failures(
    lines: Sequence[Mapping[str, Any]], steps: int, target: float, dense_loss: float | None
) -> tuple[Failure, ...]:
    """Return the failures that a router-training stage shows now.

    Args:
        lines: one stage's lines of metrics.jsonl, oldest first.
        steps: steps of the whole stage.
        target: the target sparsity.
        dense_loss: the base model's nats per token on similar text; None if not measured.

    Returns:
        Nothing for a healthy run, in the first half, and before three lines of the second half.

    Example:
        >>> lines = [{"step": step, "lm_loss": 3.0, "sparsity": 0.5} for step in (70, 80, 90)]
        >>> failures(lines, steps=100, target=0.25, dense_loss=2.5)[0].name
        'missed'
    """
    late = [line for line in lines if line["step"] * 2 > steps and "sparsity" in line][-NEWEST:]
    if len(late) < ENOUGH:
        return ()
    sparsities = _numbers(late, "sparsity")
    checks = (
        _high_loss(_numbers(late, "lm_loss"), target, dense_loss),
        _swing(_numbers(late, "sparsity_swing"), sparsities),
        _missed(sparsities, target),
        _collapsed(late[-1].get("keep"), target),
    )
    return tuple(found for found in checks if found)


def missed_when_measured(sparsity: float, target: float, budget: str = "modules") -> Failure | None:
    """Return the failure of a calibrated model that misses its target on other text, or None.

    Example:
        >>> missed_when_measured(0.161, 0.25).name
        'missed'
    """
    if abs(sparsity - target) < MISS:
        return None
    return Failure(
        "missed",
        f"On held-out text routing saves {sparsity:.1%} of {BUDGET_NOUNS[budget]}, {target:.0%} "
        "was asked.",
        "The threshold does not hold there: set it on more text (data.calibration_tokens), or "
        "calibrate the checkpoint again on text like that of use (skipgpt.calibrate).",
    )


def _high_loss(losses: list[float], target: float, dense_loss: float | None) -> Failure | None:
    if dense_loss is None or not losses or target > MODERATE:
        return None
    excess = fmean(losses) - dense_loss
    if excess < HIGH_EXCESS:
        return None
    return Failure(
        "loss",
        f"Perplexity is {math.exp(excess):.1f} times that of the dense model, at a target of only "
        f"{target:.0%}: the routers do not converge.",
        "Noise still overrules them: let router_stage.temperature_end be lower (1 is usual), train "
        "more steps, or put stage fit in front (stages=fit,router).",
    )


def _swing(swings: list[float], sparsities: list[float]) -> Failure | None:
    within = fmean(swings) if swings else 0.0
    between = pstdev(sparsities) if len(sparsities) >= ENOUGH else 0.0
    if max(within, between) < SWING:
        return None
    return Failure(
        "swing",
        f"Sparsity swings from batch to batch, by {max(within, between):.1%} (standard deviation; "
        f"{SWING:.0%} is much).",
        "The budget does not hold it: raise router_stage.alpha; if the swings are around the "
        "target, lower router_stage.learning_rate or set router_stage.budget_softness=0.1.",
    )


def _missed(sparsities: list[float], target: float) -> Failure | None:
    mean = fmean(sparsities)
    if abs(mean - target) < MISS:
        return None
    return Failure(
        "missed",
        f"The target is missed: sparsity is {mean:.1%}, {target:.0%} was asked.",
        "Calibration will move the threshold there, but the routers were not trained for it: raise "
        "router_stage.alpha or train more steps.",
    )


def _collapsed(keep: Any, target: float) -> Failure | None:
    rates = [*keep["attn"], *keep["mlp"]] if isinstance(keep, Mapping) else []
    if not rates or not 0 < target < 1:
        return None
    on = sum(rate >= ALWAYS for rate in rates) / len(rates)
    off = sum(rate <= 1 - ALWAYS for rate in rates) / len(rates)
    if on + off < COLLAPSED:
        return None
    return Failure(
        "collapsed",
        f"Routers collapsed: {on:.0%} of modules are always on and {off:.0%} always off, for "
        f"{ALWAYS:.0%} of tokens or more.",
        "Routing is static removal: raise router_stage.learning_rate, lower "
        "router_stage.start_margin, or train more steps at a higher temperature.",
    )


def _numbers(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = [line.get(name) for line in lines]
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
