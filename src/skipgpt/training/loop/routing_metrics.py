"""Metrics of what routers do at one step of training, to log and to plot.

Sampled decisions are what a step of stage `router` ran. Deterministic ones are what inference
would run if calibration happened now: one threshold over all margins of the step, at the target.

Shapes: M modules (attention and MLP of each layer in turn), N real tokens of one step.
"""

from __future__ import annotations

import math

from torch import Tensor

from skipgpt.analysis.statistics import entropy_bits
from skipgpt.routing.calibration import quantile_threshold
from skipgpt.routing.decision import MODULES

KEEP = "keep/"
"""Prefix of `attn/0`, `mlp/0`, … in the names that trackers show."""


def margin_metrics(
    margins: Tensor, target: float, weights: Tensor, overhead: float = 0.0
) -> dict[str, float]:
    """Return metrics of deterministic decisions at the target; waits for the device.

    Args:
        margins: [M, N].
        target: the sparsity of those decisions.
        weights: [M] what each module saves if every token skips it, in the unit of the target.
        overhead: what routing adds in that unit.

    Returns:
        `threshold` (left out where nothing is to be skipped), `argmax_sparsity` (the sparsity at a
        threshold of 0, the routers' own decision), and what `keep_metrics` gives.
    """
    weights = weights.to(margins.device)
    saved = (weights * (margins <= 0).float().mean(-1)).sum() - overhead
    each = (weights / margins.shape[1])[:, None].expand_as(margins)
    at = quantile_threshold(margins, target + overhead, each) if target > 0 else -math.inf
    return {
        **({"threshold": at} if target > 0 else {}),
        "argmax_sparsity": saved.item(),
        **keep_metrics(margins > at),
    }


def keep_metrics(keeps: Tensor) -> dict[str, float]:
    """Return the rates of keeps [M, N] by module, and the mean entropy of those rates in bits.

    Example:
        >>> keep_metrics(torch.tensor([[True, True], [True, False]]))
        {'entropy': 0.5, 'keep/attn/0': 1.0, 'keep/mlp/0': 0.5}
    """
    rates = keeps.float().mean(-1).cpu()
    names = [f"{KEEP}{MODULES[n % 2]}/{n // 2}" for n in range(len(rates))]
    return {
        "entropy": entropy_bits(rates).mean().item(),
        **{name: round(rate, 4) for name, rate in zip(names, rates.tolist(), strict=True)},
    }


def nested(metrics: dict[str, float]) -> dict[str, object]:
    """Group keep rates into one list per module, in layer order, as metrics.jsonl has them.

    Example:
        >>> nested({"loss": 2.5, "keep/attn/0": 1.0, "keep/mlp/0": 0.5})
        {'loss': 2.5, 'keep': {'attn': [1.0], 'mlp': [0.5]}}
    """
    plain: dict[str, object] = {k: v for k, v in metrics.items() if not k.startswith(KEEP)}
    rates = {
        module: [v for k, v in metrics.items() if k.startswith(f"{KEEP}{module}/")]
        for module in MODULES
    }
    return plain | ({"keep": rates} if any(rates.values()) else {})
