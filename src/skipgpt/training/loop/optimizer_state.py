"""Gathers the sharded state of an optimizer, as a single process has it, and shards it again.

So a run may be resumed on another number of processes, sharded or not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skipgpt.system.sharded import full_tensor, like


def gathered_state(optimizer: Any) -> dict[str, Any]:
    """Return `optimizer.state_dict()` as in a run of one process; every process has to call it.

    Args:
        optimizer: as Accelerate prepared it.
    """
    plain: dict[str, Any] = optimizer.state_dict()
    state = {
        number: {name: _in_one_piece(value) for name, value in values.items()}
        for number, values in plain["state"].items()
    }
    return {**plain, "state": state}


def scatter_state(optimizer: Any, saved: dict[str, Any]) -> None:
    """Load a gathered state, sharded as the parameters are; every process has to call it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: _like(parameters[number], value) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _in_one_piece(value: Any) -> Any:
    return full_tensor(value).cpu() if isinstance(value, Tensor) else value


def _like(parameter: Any, value: Any) -> Any:
    """Shard a value as its parameter is; scalars, such as step counts, stay as they are."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return like(parameter, value)
