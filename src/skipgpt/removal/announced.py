"""Says how long a search by losses will take, from its first trials."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from skipgpt.removal.suffix_loss import SuffixLoss
from skipgpt.routing.decision import Site

logger = logging.getLogger("skipgpt")

TIMED = 3
"""Trials that are timed, after one warm-up."""

WORTH_SAYING = 20.0
"""Seconds; shorter searches are not announced."""


def announced(
    loss: SuffixLoss, name: str, trials: int, *, at_least: bool = False
) -> Callable[[Sequence[Site]], float]:
    """Return the same loss; its fourth call logs about how long all trials will take.

    Trials in later layers run fewer layers, so the time per layer is measured. Embeddings and head
    count as one more layer, and trials run half of the layers on average. `at_least` says that
    there may be more trials.

    Example:
        one_by_one(announced(loss, "sleb", trials(layers, 4)), layers, 4)
    """
    seconds: list[float] = []
    ran: list[float] = []

    def timed(removed: Sequence[Site]) -> float:
        if len(seconds) > TIMED:
            return loss(removed)
        began, before = time.perf_counter(), loss.layers_run
        found = loss(removed)
        seconds.append(time.perf_counter() - began)
        ran.append(loss.layers_run - before + 1)
        if len(seconds) == TIMED + 1:
            each = sum(seconds[1:]) / sum(ran[1:])
            _say(name, each * trials * (loss.layers / 2 + 1), trials, at_least)
        return found

    return timed


def _say(name: str, seconds: float, trials: int, at_least: bool) -> None:
    if seconds < WORTH_SAYING:
        return
    minutes = seconds / 60
    long = f"{seconds:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
    long = f"{minutes / 60:.1f} hours" if minutes > 120 else long
    about, more = ("at least ", " or more") if at_least else ("about ", "")
    logger.info("%s: %s%s (%s trials%s)", name, about, long, f"{trials:,}", more)
