"""Calibration curves: which threshold saves which share, in each unit of a budget."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skipgpt.config import BUDGET_NOUNS, Budget, TimedForward, check_budget, check_sparsity
from skipgpt.errors import ConfigError

Points = Sequence[tuple[float, float | None]]
"""A curve in JSON, which has no infinity: null keeps everything."""


@dataclass(frozen=True)
class CalibrationCurve:
    """Thresholds by sparsity, in rising order; sparsity 0 keeps everything.

    Attributes:
        points: pairs of measured sparsity and threshold.
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def rising(cls, points: Iterable[tuple[float, float]]) -> CalibrationCurve:
        """The curve through (share, threshold) pairs in rising order of their thresholds.

        A pair that saves no more than one before it is left out.
        """
        kept = [(0.0, -math.inf)]
        for share, threshold in points:
            if share > kept[-1][0]:
                kept.append((share, threshold))
        return cls(tuple(kept))

    def shifted(self, amount: float) -> CalibrationCurve:
        """The curve of margins that are all higher by this amount."""
        return CalibrationCurve(tuple((share, at + amount) for share, at in self.points))

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
        # closest that can be had: constant margins can only be skipped together.
        return min(self.points, key=lambda point: abs(point[0] - sparsity))[1]

    def through(self, sparsity: float, threshold: float) -> CalibrationCurve:
        """Insert a measured point; drop those within 2.5 % of it or that break monotonicity."""
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

    def to_json(self) -> tuple[tuple[float, float | None], ...]:
        """The points as JSON has them.

        Example:
            >>> CalibrationCurve(((0.0, -math.inf), (0.25, 1.5))).to_json()
            ((0.0, None), (0.25, 1.5))
        """
        return tuple((s, t if math.isfinite(t) else None) for s, t in self.points)

    @classmethod
    def from_json(cls, points: Points) -> CalibrationCurve:
        """The curve of points as `to_json` gives them."""
        return cls(tuple((s, -math.inf if t is None else t) for s, t in points))


@dataclass(frozen=True)
class Curves:
    """The calibration curves of one model, one per unit of a budget.

    Attributes:
        by_budget: the curves.
        budget: the default unit, the one of training.
        timed: the forward whose seconds `time` counts; None where that is not known.
        hardware: on which those seconds were measured; empty where there is no such curve.
        keep_at: what the curves were measured from, so that one of `time` can be made on another
            machine: a threshold, and the share of tokens that each module kept there, by layer,
            attention before MLP.
    """

    by_budget: Mapping[Budget, CalibrationCurve]
    budget: Budget = "modules"
    timed: TimedForward | None = None
    hardware: Mapping[str, str] = field(default_factory=dict)
    keep_at: tuple[tuple[float, ...], ...] = ()

    def curve(self, budget: Budget | None = None) -> CalibrationCurve:
        """The curve of a unit; of the default one where None.

        Raises:
            ConfigError: there is no such unit, or the model was not calibrated in it.
        """
        unit = self.budget if budget is None else check_budget(budget)
        if unit in self.by_budget:
            return self.by_budget[unit]
        has = " and ".join(BUDGET_NOUNS[each] for each in self.by_budget)
        doing = f"setting the sparsity in {BUDGET_NOUNS[unit]}"
        if unit == "time" and self.keep_at:
            raise ConfigError(
                doing,
                got="a machine that was not profiled",
                expected="measured costs of the device and dtype that the model is in",
                todo="run `skipgpt profile` for these once, then load the model again",
            )
        first = "run `skipgpt profile` on the machine that is to be fast, then " * (unit == "time")
        raise ConfigError(
            doing,
            got=f"a model that was calibrated in {has} only",
            expected=f"one with a calibration curve of {BUDGET_NOUNS[unit]}",
            todo=f"{first}train it with `skipgpt train`, or calibrate it again with "
            f'skipgpt.calibrate(model, blocks, budget="{unit}")',
        )

    def threshold_at(self, sparsity: float, budget: Budget | None = None) -> float:
        """The threshold that saves this share of a unit.

        Raises:
            ConfigError: as `curve` does; or the sparsity is outside 0 to 0.95, or beyond the end
                of the curve.
        """
        curve, unit = self.curve(budget), budget or self.budget
        check_sparsity(sparsity, budget=unit)
        if not curve.reaches(sparsity):
            raise ConfigError(
                f"setting the sparsity in {BUDGET_NOUNS[unit]}",
                got=f"{sparsity}",
                expected=f"at most {curve.largest:.2f} of the {BUDGET_NOUNS[unit]}, the end of the "
                "calibrated curve",
            )
        return curve.threshold(sparsity)

    def clamp(self, sparsity: float, budget: Budget | None = None) -> float:
        """The sparsity itself, or the end of the curve of a unit where that comes first."""
        curve = self.curve(budget)
        return sparsity if curve.reaches(sparsity) else curve.largest

    def shifted(self, amount: float) -> Curves:
        """The curves of margins that are all higher by this amount."""
        return dataclasses.replace(
            self,
            by_budget={unit: curve.shifted(amount) for unit, curve in self.by_budget.items()},
            keep_at=tuple((at + amount, *keep) for at, *keep in self.keep_at),
        )

    def to_json(self) -> dict[str, Any]:
        """The curves as plain JSON types; `from_json` is the inverse."""
        return {
            "budget": self.budget,
            "curves": {unit: curve.to_json() for unit, curve in self.by_budget.items()},
            "timed": None if self.timed is None else dataclasses.asdict(self.timed),
            "hardware": dict(self.hardware),
            "keep_at": self.keep_at,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Curves:
        """The curves in what `to_json` made.

        Raises:
            ConfigError: a unit is unknown, or the timed forward is invalid.
        """
        curves = {
            check_budget(unit): CalibrationCurve.from_json(points)
            for unit, points in values["curves"].items()
        }
        timed = values.get("timed")
        return cls(
            curves,
            check_budget(values.get("budget", "modules")),
            None if timed is None else TimedForward(**timed),
            dict(values.get("hardware") or {}),
            tuple(map(tuple, values.get("keep_at") or ())),
        )

    @classmethod
    def of_modules(cls, curve: CalibrationCurve) -> Curves:
        """The curves of a model that is calibrated in modules only."""
        return cls({"modules": curve})
