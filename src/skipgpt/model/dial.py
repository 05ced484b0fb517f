"""The budget dial: what share of its modules a calibrated model skips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from skipgpt.errors import ConfigError
from skipgpt.model.trace import RoutingState, deciding, routing_state
from skipgpt.routing.decision import Threshold


@contextmanager
def at_sparsity(model: nn.Module, sparsity: float) -> Iterator[None]:
    """Turn the budget dial inside the block only.

    Raises:
        ConfigError: no routers, not calibrated, outside 0 to 0.95, or beyond the stored curve.

    Example:
        with skipgpt.at_sparsity(model, 0.4):
            model.generate(**inputs)
    """
    with deciding(model, dialled(routing_state(model), sparsity)):
        yield


def set_sparsity(model: nn.Module, sparsity: float) -> None:
    """Turn the budget dial: from now on the model skips this share of its modules.

    Raises:
        ConfigError: no routers, not calibrated, outside 0 to 0.95, or beyond the stored curve.
    """
    state = routing_state(model)
    state.rule = dialled(state, sparsity)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "sparsity"):  # of a merged export, which would be saved with it
        config.sparsity = sparsity


def within_reach(model: nn.Module, target: float) -> float:
    """What a model was trained for, or the end of its dial where that comes first.

    Raises:
        ConfigError: no routers.

    Example:
        skipgpt.set_sparsity(model, within_reach(model, 0.4))
    """
    curve = routing_state(model).curve
    return target if curve is None or curve.reaches(target) else curve.largest


def dialled(state: RoutingState, sparsity: float) -> Threshold:
    """The rule that skips this share of modules.

    Raises:
        ConfigError: not calibrated, outside 0 to 0.95, or beyond the stored curve.
    """
    if state.curve is None:
        raise ConfigError(
            "setting the sparsity",
            got="a model that was never calibrated",
            todo="train it with `skipgpt train`, or call skipgpt.calibrate(model, blocks)",
        )
    threshold = state.curve.threshold(sparsity)
    if not state.curve.reaches(sparsity):
        raise ConfigError(
            "setting the sparsity",
            got=f"{sparsity}",
            expected=f"at most {state.curve.largest:.2f}, the end of the calibrated curve",
        )
    return Threshold(threshold)
