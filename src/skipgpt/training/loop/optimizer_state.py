"""Gathers the sharded state of an optimizer, as a single process has it, and shards it again.

So a run may be resumed on another number of processes, sharded or not. DeepSpeed ZeRO holds a state
in flat partitions of many parameters; gathered, it is as torch's AdamW has it. Every process has to
call each function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.system.sharded import full_tensor, like

_MOMENTS = ("exp_avg", "exp_avg_sq")


def gathered_state(optimizer: Any) -> dict[str, Any]:
    """Return `optimizer.state_dict()`, as Accelerate prepared it, as in a run of one process."""
    plain: dict[str, Any] = optimizer.state_dict()
    state = {
        number: {
            name: full_tensor(value).cpu() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in plain["state"].items()
    }
    return {**plain, "state": state}


def scatter_state(optimizer: Any, saved: dict[str, Any]) -> None:
    """Load a gathered state, sharded as the parameters are."""
    parameters = _parameters(optimizer.param_groups)
    state = {
        number: {name: _like(parameters[number], value) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _like(parameter: Any, value: Any) -> Any:
    """Shard a value as its parameter is; scalars, such as step counts, stay as they are."""
    return like(parameter, value) if isinstance(value, Tensor) and value.ndim else value


def gathered_from_zero(optimizer: Any, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what `state_dict()` of torch's AdamW over the groups that DeepSpeed got would be."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(optimizer)
    step = next(
        (s["step"] for s in _base(optimizer).state.values() if "step" in s), torch.tensor(0.0)
    )
    plain = torch.optim.AdamW(groups).state_dict()
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(plain["param_groups"], rates, strict=True):
        group["lr"] = rate
    plain["state"] = {
        number: {
            "step": torch.as_tensor(step, dtype=torch.float32).cpu().clone(),
            **{
                name: safe_get_full_optimizer_state(parameter, name).cpu().view(_shape(parameter))
                for name in _MOMENTS
            },
        }
        for number, parameter in enumerate(_parameters(groups))
    }
    return plain


def scatter_to_zero(optimizer: Any, groups: list[dict[str, Any]], saved: dict[str, Any]) -> None:
    """Load a gathered state, and copy the current weights to DeepSpeed."""
    from deepspeed.utils import safe_set_full_optimizer_state

    base, step = _base(optimizer), saved["state"][0]["step"]
    for group, before in zip(base.param_groups, saved["param_groups"], strict=True):
        group["lr"] = before["lr"]
    for flat in _flat_weights(optimizer):
        moments = {name: torch.zeros_like(flat) for name in _MOMENTS}
        base.state[flat] = {"step": step.clone(), **moments}
    _link(optimizer)
    sync_weights(groups)
    for number, parameter in enumerate(_parameters(groups)):
        for name in _MOMENTS:
            value = saved["state"][number][name].to(parameter.device)
            safe_set_full_optimizer_state(parameter, value, name)


def sync_weights(groups: list[dict[str, Any]]) -> None:
    """Copy weights that were written into the model to DeepSpeed's own copies of them."""
    from deepspeed.utils import safe_set_full_fp32_param

    for parameter in _parameters(groups):
        safe_set_full_fp32_param(parameter, full_tensor(parameter).float())


def _parameters(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    return [parameter for group in groups for parameter in group["params"]]


def _shape(parameter: Any) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _base(optimizer: Any) -> Any:
    """Return the torch optimizer over flat partitions, inside whatever wraps it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _flat_weights(optimizer: Any) -> list[Tensor]:
    """Return this process's flat float32 partitions, one per group: ZeRO-3's, or ZeRO-2's."""
    while not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        if hasattr(optimizer, "single_partition_of_fp32_groups"):
            return list(optimizer.single_partition_of_fp32_groups)
        optimizer = optimizer.optimizer
    return list(optimizer.fp32_partitioned_groups_flat)


def _link(optimizer: Any) -> None:
    """Let ZeRO-2 look up parameters' states again; it did so before torch had made any."""
    while hasattr(optimizer, "optimizer"):
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        optimizer = optimizer.optimizer
