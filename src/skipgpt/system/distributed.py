"""The processes of a run: which one this is, and what they agree on.

Everything here is a no-op in a run of one process, and nothing here starts other processes: that
is done by `torchrun` or `accelerate launch`, which set each process's rank in environment
variables. A function marked as a collective call has to be called by every process of the run.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skipgpt.errors import MissingExtraError
from skipgpt.system.sharded import is_sharded

T = TypeVar("T")
P = ParamSpec("P")

Layout = Literal["whole", "fsdp", "zero"]
"""Every process holds the whole model; or a share of it, by FSDP2 or DeepSpeed."""

_SPEAKER = "skipgpt/speaker"


def rank() -> int:
    """The rank of this process in its run; the first one is 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes files and logs."""
    return rank() == 0


def world_size() -> int:
    """How many processes the run has; 1 until `init` has connected them."""
    return dist.get_world_size() if _met() else 1


def launched() -> int:
    """How many processes were launched together, whether or not they are connected."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def init(device: str) -> str:
    """Connect the launched processes and return the device of this one; a collective call.

    Args:
        device: of the run; `cuda` becomes `cuda:1` in the second process of a machine.

    Raises:
        MissingExtraError: the launcher asks for DeepSpeed, and it is not installed.
    """
    if layout() == "zero" and importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed", "training with DeepSpeed")
    if launched() == 1:
        return device
    from accelerate import PartialState

    on_cpu = device.split(":")[0] == "cpu"
    if not _met():
        PartialState(cpu=on_cpu)
    if not is_first():
        logging.getLogger("skipgpt").setLevel(logging.ERROR)
    return device if on_cpu or ":" in device else f"{device}:{os.environ.get('LOCAL_RANK', '0')}"


def layout() -> Layout:
    """How the launcher was told to spread a model over processes."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "zero"
    return "fsdp" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else "whole"


def in_lockstep() -> bool:
    """Whether all processes have to call modules in the same order, as with ZeRO-3."""
    return layout() == "zero" and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"


def shard_on_cpu(accelerator: Any) -> None:
    """Enable FSDP2 on CPU, where Accelerate would silently replicate the model."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    # Accelerate stores the type in two places, of which the second overwrites the first.
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()


def load_whole() -> None:
    """Make transformers load the next model whole: it remembers ZeRO-3 of an earlier stage."""
    if layout() == "zero":
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def from_first(value: T) -> T:
    """Return the first process's value, which must be picklable; a collective call."""
    if not _met():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def by_first(action: Callable[[], T]) -> T:
    """Run an action in the first process only and return its result in all; a collective call.

    Raises:
        Exception: what the action raised, in every process.
    """
    if not _met():
        return action()
    value, error = None, None
    if is_first():
        try:
            value = action()
        except Exception as raised:
            error = raised
    value, error = from_first((value, error))
    if error is not None:
        raise error
    return cast("T", value)


def first_alone(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function run in the first process only; all processes get its result or error."""

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        return by_first(lambda: function(*args, **kwargs))

    return alone


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over processes, without gradient; a collective call."""
    if not _met():
        return value.detach()
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed / dist.get_world_size()


def all_gather(value: Tensor) -> Tensor:
    """Concatenate all processes' tensors [M, N] along N, which may differ; a collective call."""
    if not _met():
        return value
    own = torch.tensor(value.shape[1], device=value.device)
    widths = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(widths, own)
    most = int(torch.stack(widths).max())
    # Not every backend sends bools.
    sent = nn.functional.pad(value.float(), (0, most - value.shape[1])).contiguous()
    found = [torch.empty_like(sent) for _ in widths]
    dist.all_gather(found, sent)
    cut = [each[:, : int(width)] for each, width in zip(found, widths, strict=True)]
    return torch.cat(cut, dim=1).to(value.dtype)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process; a collective call."""
    if not _met():
        return flag
    return bool(mean(torch.tensor(float(flag), device=device)) > 0)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the first process's tensors to all; sharded tensors agree already; a collective call."""
    if not _met():
        return
    for tensor in tensors:
        if not is_sharded(tensor):
            dist.broadcast(tensor.detach(), src=0)


def may_report() -> bool:
    """Whether this process is the one that reports why the run ends: the first to ask.

    Before processes are connected, an error occurs in all of them, and the first one reports it.
    """
    if not _met():
        return is_first()
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.compare_set(_SPEAKER, "", str(rank())) == str(rank()).encode()
    except (RuntimeError, AttributeError):  # the process that held the store is gone
        return is_first()


def _met() -> bool:
    return dist.is_available() and dist.is_initialized()
