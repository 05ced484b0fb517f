"""Calibration: the threshold at which deterministic decisions reach a given sparsity.

Routers trained by sampling skip less when they decide deterministically, and stage `lora` shifts
what they read; one threshold for the whole model puts that right. Because the threshold moves the
sparsity, a checkpoint stores the whole curve: one checkpoint serves many budgets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skipgpt.config import check_sparsity

CURVE = tuple(step / 20 for step in range(17))
"""The sparsities of a stored curve: 0, 5, … 80 %."""
FAR, FAR_ROUNDS = 0.02, 8
"""As long as a sparsity is missed by more than this, it is worth so many measurements."""
JUMP = 0.15
"""What skips so much more than was asked for is no answer to it."""


@dataclass(frozen=True)
class CalibrationCurve:
    """Thresholds by sparsity, in rising order; sparsity 0 keeps everything.

    Attributes:
        points: pairs of measured sparsity and threshold.
    """

    points: tuple[tuple[float, float], ...]

    def threshold(self, sparsity: float) -> float:
        """The threshold for a sparsity, by linear interpolation between stored points.

        Raises:
            ConfigError: the sparsity is outside 0 to 0.95.
        """
        check_sparsity(sparsity)
        if sparsity == 0:
            return -math.inf
        points = [point for point in self.points if math.isfinite(point[1])]
        for (low, at_low), (high, at_high) in itertools.pairwise(points):
            if low <= sparsity <= high and high > low:
                return at_low + (at_high - at_low) * (sparsity - low) / (high - low)
        # Between keeping all and the first point, or beyond the last, the nearest point is the
        # honest answer: constant margins can only be skipped together.
        return min(self.points, key=lambda point: abs(point[0] - sparsity))[1]

    def through(self, sparsity: float, threshold: float) -> CalibrationCurve:
        """The curve with one more point, in place of those near it and any that contradict it."""
        kept = [
            point
            for point in self.points
            if (point[0] - sparsity) * (point[1] - threshold) > 0
            and (abs(point[0] - sparsity) > 0.025 or not math.isfinite(point[1]))
        ]
        return CalibrationCurve(tuple(sorted([*kept, (sparsity, threshold)])))

    def reaches(self, sparsity: float) -> bool:
        """Whether a sparsity lies on the curve, or no further than half a step beyond its end."""
        return sparsity <= self.largest + 0.025

    @property
    def largest(self) -> float:
        """The highest sparsity that was reached."""
        return max((sparsity for sparsity, _ in self.points), default=0.0)


MarginsAt = Callable[[float], Tensor]
"""Runs held-out text at a threshold and returns the margins [tokens x modules] that were seen."""


def calibrate(margins_at: MarginsAt, sparsity: float, start: float, rounds: int = 6) -> float:
    """Find the threshold of one sparsity.

    Skipping changes the hidden states that later routers read, so the quantile of the margins
    seen at one threshold is only the next guess. Guesses stay between thresholds that were seen
    to skip too little and too much, and are repeated until the measured sparsity is within a
    quarter of a point; the closest one is returned. Where sparsity jumps, none may be close.

    Args:
        margins_at: measures the margins at a threshold.
        sparsity: share of decisions to skip.
        start: a first guess.
        rounds: the most measurements, if the sparsity is then about met.
    """
    return _closest(margins_at, sparsity, start, rounds)[0]


def calibrate_curve(
    margins_at: MarginsAt, sparsities: tuple[float, ...] = CURVE, rounds: int = 3
) -> CalibrationCurve:
    """The whole dial, each point starting from the threshold of the one before.

    Where skipping a little more would skip nearly everything, the curve ends.
    """
    points: list[tuple[float, float]] = [(0.0, -math.inf)]
    threshold, seen = -math.inf, margins_at(-math.inf)
    for sparsity in sparsities:
        if sparsity == 0:
            continue
        guess = quantile_threshold(seen, sparsity)
        threshold, seen = _closest(margins_at, sparsity, guess, rounds, (threshold, seen))
        reached = skipped_share(seen, threshold)
        if points[-1][0] < reached <= sparsity + JUMP:
            points.append((reached, threshold))
    return CalibrationCurve(tuple(points))


def _closest(
    margins_at: MarginsAt,
    sparsity: float,
    start: float,
    rounds: int,
    known: tuple[float, Tensor] | None = None,
) -> tuple[float, Tensor]:
    """The threshold, and the margins that were seen there; `known` is one to begin from."""
    low, below = known or (-math.inf, None)
    high, guess = math.inf, start
    best, at_best = known or (start, torch.empty(0))
    error = math.inf if known is None else abs(skipped_share(at_best, best) - sparsity)
    for done in range(max(rounds, FAR_ROUNDS)):
        if done >= rounds and error <= FAR:
            break
        seen = margins_at(guess)
        share = skipped_share(seen, guess)
        if abs(share - sparsity) < error:
            best, at_best, error = guess, seen, abs(share - sparsity)
        if error <= 0.0025:
            break
        if share < sparsity:
            low, below, high = guess, seen, high if high > guess else math.inf
        else:
            high, low = guess, low if low < guess else -math.inf
        quantiles = [quantile_threshold(m, sparsity) for m in (seen, below) if m is not None]
        guess = next((q for q in quantiles if low < q < high), _between(low, high))
    return best, at_best


def _between(low: float, high: float) -> float:
    """A number between two of which one may be infinite."""
    if math.isinf(high):
        return low + 1 + abs(low)
    return high - 1 - abs(high) if math.isinf(low) else (low + high) / 2


def skipped_share(margins: Tensor, threshold: float) -> float:
    """The share of margins [N] that a threshold skips."""
    return (margins <= threshold).float().mean().item()


def quantile_threshold(margins: Tensor, sparsity: float) -> float:
    """A threshold that skips this share of these margins [N], midway between two of them.

    Midway, so that equal margins, as constant routers give, fall clearly on one side.
    """
    ordered = torch.sort(margins.flatten()).values
    count = min(len(ordered) - 1, max(1, round(sparsity * len(ordered))))
    return ((ordered[count - 1] + ordered[count]) / 2).item()
