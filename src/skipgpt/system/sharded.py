"""Sharded tensors, one shard per process: of FSDP2, and of DeepSpeed ZeRO-3.

For a whole tensor nothing here communicates. For a sharded one all processes have to call the same
function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is sharded."""
    return _by_fsdp(tensor) or _by_zero(tensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor, detached."""
    placed: Any = tensor.detach()
    if _by_fsdp(tensor):
        placed = placed.full_tensor()
    elif _by_zero(tensor):
        from deepspeed import zero

        with zero.GatheredParameters([tensor]):
            placed = tensor.detach().clone()
    made: Tensor = placed
    return made


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Copy a value into a parameter; into a sharded one, the value of the first process."""
    if _by_fsdp(parameter):
        parameter.copy_(like(parameter, value.to(parameter.dtype)))
    elif _by_zero(parameter):
        from deepspeed import zero

        with zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)
    else:
        parameter.copy_(value)


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """Shard a value of a parameter's shape as the parameter is sharded."""
    if not _by_fsdp(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed: Any = parameter
    value = value.to(parameter.device)
    made: Tensor = distribute_tensor(value, placed.device_mesh, placed.placements)
    return made


def _by_fsdp(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def _by_zero(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")
