"""Pulling trained routers towards the static solution, as far as that helps.

A router with constant margins copies a static removal, so trained routers have no excuse to be
worse. But in a deep model whose modules are hardly needed, few training steps do end up worse.
One number mends that: the margins of the greedy removal, times a strength, are added to the
biases. Strength 0 is what was trained; a large one is the static removal, with the trained margin
deciding only between tokens of the last module; the best strength on calibration text is kept.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from skipgpt.baselines.static import constant_margins
from skipgpt.baselines.units import Unit
from skipgpt.cost import Savings, savings
from skipgpt.evaluation.meter import Meter, run_at_threshold
from skipgpt.evaluation.windows import mean_context
from skipgpt.model.surgery import routers
from skipgpt.routing.calibration import calibrate as find_threshold
from skipgpt.routing.router import add_to_margin

STRENGTHS = (0.0, 1.0, 64.0)
"""In standard deviations of the trained margins."""


def blend_with_static(
    model: Any,
    order: list[Unit],
    calibration: Tensor,
    sparsity: float,
    saved: Savings | None = None,
) -> float:
    """Blend the greedy static removal into the routers' biases.

    Args:
        model: with trained routers; their biases are changed in place.
        order: the removal, first removed first.
        calibration: [N, T] token ids that the strength is chosen on.
        sparsity: share to save.
        saved: what each site saves, in the unit of `sparsity`; all the same where None.

    Returns:
        The chosen strength.
    """
    saved = saved or savings(model, "modules", mean_context(calibration))
    margins, _ = run_at_threshold(model, calibration, -math.inf)
    unit = margins.std().clamp(min=1e-3).item()
    losses = {}
    for strength in STRENGTHS:
        _shift(model, order, strength * unit)
        losses[strength] = _loss_at_sparsity(model, calibration, sparsity, saved)
        _shift(model, order, -strength * unit)
    best = min(losses, key=lambda strength: losses[strength])
    _shift(model, order, best * unit)
    return best


def _shift(model: Any, order: list[Unit], amount: float) -> None:
    for site, margin in constant_margins(model, order).items():
        add_to_margin(routers(model)[site], amount * margin)


def _loss_at_sparsity(model: Any, blocks: Tensor, sparsity: float, saved: Savings) -> float:
    """Summed loss with the threshold that saves this share on these blocks."""
    meter = Meter(model, blocks, saved)
    start = meter(-math.inf).guess(sparsity)
    return meter.losses[find_threshold(meter, sparsity, start, rounds=4)]
