"""Pulling trained routers towards the static solution, as far as that helps.

A router with constant margins copies a static removal, so trained routers have no excuse to be
worse. But in a deep model whose modules are hardly needed, few training steps do end up worse.
One number mends that: the margins of the greedy removal, times a strength, are added to the
biases. Strength 0 is what was trained; a large one is the static removal, with the trained margin
deciding only between tokens of the last module; the best strength on calibration text is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from skipgpt.baselines.greedy import greedy_order, static_margins
from skipgpt.evaluation.calibrate import run_at_threshold
from skipgpt.model.surgery import routers
from skipgpt.routing.calibration import calibrate as find_threshold
from skipgpt.routing.calibration import quantile_threshold
from skipgpt.routing.decision import Site
from skipgpt.routing.router import add_to_margin

STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 64.0)
"""In standard deviations of the trained margins."""


def blend_with_static(
    model: Any,
    train: Tensor,
    calibration: Tensor,
    sparsity: float,
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[list[Site], float]:
    """Find the greedy static removal and blend it into the routers' biases.

    Args:
        model: with trained routers; their biases are changed in place.
        train: [N, T] token ids that the removal is chosen on.
        calibration: [N, T] token ids that the strength is chosen on.
        sparsity: share of modules to skip.
        on_step: called with trials of the search done and in all.

    Returns:
        The removed sites, first removed first, and the chosen strength.
    """
    removals = max(1, round(sparsity * len(routers(model))))
    order = greedy_order(model, train, removals, on_step=on_step)
    margins, _ = run_at_threshold(model, calibration, -math.inf)
    unit = margins.std().clamp(min=1e-3).item()
    losses = {}
    for strength in STRENGTHS:
        _shift(model, order, strength * unit)
        losses[strength] = _loss_at_sparsity(model, calibration, sparsity)
        _shift(model, order, -strength * unit)
    best = min(losses, key=lambda strength: losses[strength])
    _shift(model, order, best * unit)
    return order, best


def _shift(model: Any, order: list[Site], amount: float) -> None:
    for site, margin in static_margins(model, order).items():
        add_to_margin(routers(model)[site], amount * margin)


def _loss_at_sparsity(model: Any, blocks: Tensor, sparsity: float) -> float:
    """Summed loss with the threshold that skips this share of these blocks."""
    start = quantile_threshold(run_at_threshold(model, blocks, -math.inf)[0], sparsity)
    threshold = find_threshold(
        lambda guess: run_at_threshold(model, blocks, guess)[0], sparsity, start, rounds=4
    )
    return run_at_threshold(model, blocks, threshold)[1]
