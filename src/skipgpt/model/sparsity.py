"""The sparsity control: what share of its cost a calibrated model saves, and in which unit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from skipgpt.config import Budget
from skipgpt.errors import ConfigError
from skipgpt.model.state import RoutingState, routing_state, use_rule
from skipgpt.routing.curve import Curves
from skipgpt.routing.decision import Threshold


@contextmanager
def at_sparsity(
    model: nn.Module, sparsity: float, *, budget: Budget | None = None
) -> Iterator[None]:
    """Set the sparsity inside the block only.

    Args:
        model: calibrated.
        sparsity: share to save; 0 keeps everything.
        budget: the unit: `modules`, `flops` or `time`; the one of training where None.

    Raises:
        ConfigError: no routers, not calibrated (in that unit), outside 0 to 0.95, or beyond the
            stored curve.

    Example:
        with skipgpt.at_sparsity(model, 0.4):
            model.generate(**inputs)
    """
    with use_rule(model, threshold_at(routing_state(model), sparsity, budget)):
        yield


def set_sparsity(model: nn.Module, sparsity: float, *, budget: Budget | None = None) -> None:
    """Set the sparsity: from now on the model saves this share.

    Args:
        model: calibrated.
        sparsity: share to save; 0 keeps everything.
        budget: the unit: `modules`, `flops` or `time`; the one of training where None.

    Raises:
        ConfigError: no routers, not calibrated (in that unit), outside 0 to 0.95, or beyond the
            stored curve.

    Example:
        skipgpt.set_sparsity(model, 0.25, budget="flops")
    """
    state = routing_state(model)
    state.rule = threshold_at(state, sparsity, budget)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "sparsity"):  # of a merged export, which would be saved with it
        config.sparsity, config.budget = sparsity, budget


def clamp_to_curve(model: nn.Module, target: float, budget: Budget | None = None) -> float:
    """The target, or the end of the model's curve of this budget where that comes first.

    Raises:
        ConfigError: no routers, or no curve of that unit.

    Example:
        skipgpt.set_sparsity(model, clamp_to_curve(model, 0.4))
    """
    curves = routing_state(model).curves
    return target if curves is None else curves.clamp(target, budget)


def threshold_of(curves: Curves | None, sparsity: float, budget: Budget | None = None) -> float:
    """The threshold that saves this share, read off the curves of a model.

    Raises:
        ConfigError: not calibrated (in that unit), outside 0 to 0.95, or beyond the stored curve.
    """
    if curves is None:
        raise ConfigError(
            "setting the sparsity",
            got="a model that was never calibrated",
            todo="train it with `skipgpt train`, or call skipgpt.calibrate(model, blocks)",
        )
    return curves.threshold_at(sparsity, budget)


def threshold_at(state: RoutingState, sparsity: float, budget: Budget | None = None) -> Threshold:
    """The rule that saves this share; raises as `threshold_of` does."""
    return Threshold(threshold_of(state.curves, sparsity, budget))
