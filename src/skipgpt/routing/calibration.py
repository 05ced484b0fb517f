"""Calibration: the threshold at which deterministic decisions reach a given sparsity.

Routers trained by sampling skip less when they decide deterministically, and stage `lora` shifts
what they read; one threshold for the whole model corrects that. Because the threshold moves the
sparsity, a checkpoint stores whole curves: one checkpoint serves many budgets.

Shapes: N decisions, of all sites and real tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skipgpt.routing.curve import CalibrationCurve as CalibrationCurve

CURVE = tuple(step / 20 for step in range(17))
"""The sparsities of a stored curve: 0, 5, … 80 %."""
FAR, FAR_ROUNDS = 0.02, 8
"""While the sparsity is off by more than `FAR`, up to `FAR_ROUNDS` measurements are made."""
JUMP = 0.15
"""A point that skips so much more than was asked for is left out of the curve."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What was measured at one threshold.

    Attributes:
        margins: [N].
        share: of the cost that was saved there; may be below 0.
        weights: [N] share of the cost that skipping each decision saves.
        overhead: how much less is saved than the weights of what was skipped: what routing adds,
            and what is not in proportion to what is skipped.
    """

    margins: Tensor
    share: float
    weights: Tensor
    overhead: float = 0.0

    def guess(self, sparsity: float) -> float:
        """The threshold that saves this share if margins and overhead stay as they are."""
        return quantile_threshold(self.margins, sparsity + self.overhead, self.weights)


SeenAt = Callable[[float], Seen]
"""Runs held-out text at a threshold and returns what was measured."""


def find_threshold(seen_at: SeenAt, sparsity: float, start: float, rounds: int = 6) -> float:
    """Find the threshold that saves a share, in the unit that `seen_at` counts.

    Skipping changes the hidden states that later routers read, so the quantile of the margins
    seen at one threshold is only the next guess. Guesses stay between thresholds that were seen
    to skip too little and too much, and are repeated until the measured sparsity is within a
    quarter of a point; the closest one is returned. Where sparsity jumps, none may be close.
    `rounds` limits the measurements once the sparsity is about met.
    """
    return _closest(seen_at, sparsity, start, rounds)[0]


def calibrate_curve(
    seen_at: SeenAt,
    sparsities: tuple[float, ...] = CURVE,
    rounds: int = 1,
    on_point: Callable[[int, int], None] | None = None,
) -> CalibrationCurve:
    """Measure the whole curve, each point starting from the threshold of the one before.

    Where skipping a little more would skip nearly everything, the curve ends. `rounds` limits the
    measurements of a point that is about met; `on_point` gets points done and points in all.
    """
    points: list[tuple[float, float]] = [(0.0, -math.inf)]
    threshold, seen = -math.inf, seen_at(-math.inf)
    for done, sparsity in enumerate(sparsities, 1):
        if sparsity > 0:
            guess = seen.guess(sparsity)
            threshold, seen = _closest(seen_at, sparsity, guess, rounds, (threshold, seen))
            if points[-1][0] < seen.share <= sparsity + JUMP:
                points.append((seen.share, threshold))
        if on_point:
            on_point(done, len(sparsities))
    return CalibrationCurve(tuple(points))


def _closest(
    seen_at: SeenAt,
    sparsity: float,
    start: float,
    rounds: int,
    known: tuple[float, Seen] | None = None,
) -> tuple[float, Seen]:
    """The threshold, and what was seen there; `known` is one to begin from."""
    low, below = known or (-math.inf, None)
    high, guess = math.inf, start
    best, at_best = known or (start, Seen(torch.empty(0), math.nan, torch.empty(0)))
    error = math.inf if known is None else abs(at_best.share - sparsity)
    for done in range(max(rounds, FAR_ROUNDS)):
        if done >= rounds and error <= FAR:
            break
        seen = seen_at(guess)
        if abs(seen.share - sparsity) < error:
            best, at_best, error = guess, seen, abs(seen.share - sparsity)
        if error <= 0.0025:
            break
        if seen.share < sparsity:
            low, below, high = guess, seen, high if high > guess else math.inf
        else:
            high, low = guess, low if low < guess else -math.inf
        quantiles = [each.guess(sparsity) for each in (seen, below) if each is not None]
        guess = next((q for q in quantiles if low < q < high), _between(low, high))
    return best, at_best


def _between(low: float, high: float) -> float:
    """A number between two bounds, of which one may be infinite."""
    if math.isinf(high):
        return low + 1 + abs(low)
    return high - 1 - abs(high) if math.isinf(low) else (low + high) / 2


def quantile_threshold(margins: Tensor, sparsity: float, weights: Tensor) -> float:
    """A threshold that saves this share, midway between two margins [N].

    Midway, so that equal margins, as constant routers give, fall clearly on one side. The share is
    in the unit of `weights` [N], what skipping each saves. Weights below 0 count as 0, since no
    budget is met by skipping what costs more than it saves.

    Example:
        >>> margins, weights = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.5, 0.2])
        >>> quantile_threshold(margins, 0.6, weights)
        2.5
    """
    ordered, order = torch.sort(margins.flatten())
    saved = weights.flatten()[order].clamp(min=0).double().cumsum(0)
    # Some margin is left on either side.
    count = 1 + int((saved[:-1] - sparsity).abs().argmin())
    return ((ordered[count - 1] + ordered[count]) / 2).item()
