"""What all Triton kernels share: where they run, how much shared memory they may ask for.

Tiles are chosen by dtype and by the most rows there can be, never by how many there are, which the
host does not know.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALLEST = 16
"""Rows, columns and depth of the smallest product that tensor cores take."""


def on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on the device of this tensor, whichever is current."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        capability: of the device, as (9, 0).
        shared: bytes of shared memory.
    """

    capability: tuple[int, int]
    shared: int

    @property
    def has_warpgroup_mma(self) -> bool:
        """Whether four warps multiply as one (Hopper, larger Blackwell), with fewer registers."""
        return self.capability[0] in (9, 10)

    def stages(self, bytes_each: int, held: int = 0, most: int = 4) -> int:
        """How many loads of `bytes_each` may be in flight at once, beside bytes that are held."""
        return max(1, min(most, (self.shared - held) // bytes_each))


@functools.cache
def limits(device: torch.device) -> Limits:
    """What a program may use on this device; nothing where kernels are only interpreted."""
    if device.type != "cuda":
        return Limits((0, 0), 0)
    found: Any = torch.cuda.get_device_properties(device)
    return Limits((found.major, found.minor), int(found.shared_memory_per_block_optin))


def power_of_two(number: int, smallest: int = SMALLEST, largest: int = 1 << 30) -> int:
    """The next power of two, within bounds."""
    return max(smallest, min(largest, 1 << max(0, number - 1).bit_length()))


def as_bytes(flags: Tensor) -> Tensor:
    """A bool tensor as the bytes it is stored in."""
    return flags.view(torch.uint8)
