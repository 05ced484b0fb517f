"""The two searches for what to remove: greedy, or one ranking. No tensors.

Some methods protect the ends of a model. Protected units are removed last, so that every budget can
be met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from skipgpt.removal.units import Unit, check_removals, sites_of
from skipgpt.routing.decision import Site
from skipgpt.system.progress import OnStep

Score = Callable[..., Mapping[Unit, float]]
"""Scores units, of which the least go first, by `model`, `blocks`, `batch_size` and `on_step`."""


class Method(Protocol):
    """The signature of every search for what to remove."""

    def __call__(
        self,
        model: nn.Module,
        blocks: Tensor,
        removals: int,
        *,
        batch_size: int = 8,
        on_step: OnStep | None = None,
    ) -> list[Unit]:
        """Choose what to remove.

        Args:
            model: with routers, whose outputs are ignored.
            blocks: [N, T] token ids that the choice is made on.
            removals: how many units to remove.
            batch_size: blocks per forward.
            on_step: called with steps done and steps in all.

        Returns:
            The removed units, first removed first; unless the method changes weights, any prefix is
                the result for fewer removals.

        Raises:
            ConfigError: the model has no routers, or fewer units than that.

        Example:
            constant_routes(model, sleb(model, blocks, 4))
        """
        ...


def one_by_one(
    loss: Callable[[list[Site]], float],
    units: Sequence[Unit],
    removals: int,
    *,
    protected: Collection[Unit] = (),
    enough: Callable[[list[Unit]], bool] | None = None,
    on_step: OnStep | None = None,
) -> list[Unit]:
    """Remove unit after unit, each time the one whose removal leaves the lowest loss.

    Protected units are removed only when no others are left. The search ends early once `enough`
    says so of what was removed. `on_step` counts trials; with `enough` their total is unknown, so
    0. The removed units are returned, first removed first; ConfigError is raised at more removals
    than units.
    """
    check_removals(removals, units)
    left, removed = list(units), list[Unit]()
    free = len(left) - len(protected)
    trials = sum(free - n if n < free else len(left) - n for n in range(removals))
    done, total = 0, (0 if enough else trials)
    while len(removed) < removals and not (enough and enough(removed)):
        losses = {}
        for unit in [each for each in left if each not in protected] or left:
            losses[unit] = loss(sites_of([*removed, unit]))
            done += 1
            if on_step:
                on_step(done, total)
        best = min(losses, key=lambda unit: _orderly(losses[unit]))
        left.remove(best)
        removed.append(best)
    return removed


def one_shot(
    importance: Mapping[Unit, float], removals: int, *, protected: Collection[Unit] = ()
) -> list[Unit]:
    """Return the least important units, the least important first; protected ones last.

    Raises:
        ConfigError: more removals than units.
    """
    check_removals(removals, list(importance))
    ranking = sorted(importance, key=lambda unit: (unit in protected, _orderly(importance[unit])))
    return ranking[:removals]


def _orderly(value: float) -> float:
    """Return the value, or infinity for NaN, which cannot be ordered."""
    return math.inf if math.isnan(value) else value
