"""Random numbers of a row of training text, independent of its batch and its process.

    number = hash(seed, row, site, token)

A row is identified by its place in the run, not in its batch. So a run draws the same numbers
whether its rows come in one batch, in parts or on several processes, again when it is resumed, and
again when the backward pass recomputes a layer. Shapes: B batch, T query tokens, D hidden.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


@dataclass(frozen=True, eq=False)
class RowNoise:
    """The random numbers of the rows of a batch.

    Attributes:
        seed: of the run.
        rows: [B] int64 on a CPU, the place of each row in the run.

    Example:
        >>> noise = RowNoise(0, torch.tensor([5, 6]))
        >>> later = RowNoise(0, torch.tensor([6]))
        >>> torch.equal(noise.uniform((2, 3), "x")[1:], later.uniform((1, 3), "x"))
        True
    """

    seed: int
    rows: Tensor

    def uniform(
        self, shape: tuple[int, int], purpose: str, device: torch.device | None = None
    ) -> Tensor:
        """Numbers between 0 and 1, both excluded, float32 of shape [B, T]; equal on every device.

        Those of another purpose are independent of these.
        """
        keys = torch.tensor([_signed(key) for key in self._keys(purpose)], device=device)
        mixed = torch.arange(1, shape[1] + 1, device=device) * _signed(_GOLDEN) + keys[:, None]
        _scramble(mixed)
        # 23 bits and a half are what float32 holds exactly; the half keeps both ends out.
        top = mixed.bitwise_right_shift_(41).bitwise_and_(2**23 - 1)
        return top.float().add_(0.5).mul_(2**-23)

    def generators(self, purpose: str, device: torch.device) -> Iterator[torch.Generator]:
        """Yield one generator per row, for many numbers; they agree on devices of one kind."""
        for key in self._keys(purpose):
            yield torch.Generator(device).manual_seed(key)

    def _keys(self, purpose: str) -> list[int]:
        start = _mixed(_mixed(self.seed) ^ _number(purpose))
        return [_mixed(start + row * _GOLDEN) for row in self.rows.tolist()]


@functools.cache
def _number(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _mixed(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): each bit affects all others."""
    value &= _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _scramble(value: Tensor) -> None:
    """Apply `_mixed` to an int64 tensor, in place; masks the ones that signed shifts bring in."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value.bitwise_xor_(value.bitwise_right_shift(shift).bitwise_and_(2 ** (64 - shift) - 1))
        value.mul_(_signed(factor))
    value.bitwise_xor_(value.bitwise_right_shift(31).bitwise_and_(2**33 - 1))


def _signed(value: int) -> int:
    """An unsigned 64-bit number as int64 holds it."""
    return value - 2**64 if value >= 2**63 else value
