"""Keys and values of the tokens that one sequence kept.

Shapes: P kept tokens of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Row:
    """The kept tokens of one sequence: keys and values [heads, P, size], places [P] int32."""

    keys: Tensor
    values: Tensor
    places: Tensor

    def map(self, change: Callable[[Tensor, int], Tensor]) -> Row:
        """Apply `change` to each part and the dimension along which the part's tokens lie."""
        return Row(change(self.keys, 1), change(self.values, 1), change(self.places, 0))

    def only(self, keep: Tensor) -> Row:
        """The tokens where keep [P] is true."""
        return self.map(lambda part, dim: part.index_select(dim, keep.nonzero().squeeze(-1)))


def join(old: Row, new: Row) -> Row:
    """The tokens of `old`, then those of `new`."""
    if not len(new.places):
        return old
    return Row(
        torch.cat([old.keys, new.keys], 1),
        torch.cat([old.values, new.values], 1),
        torch.cat([old.places, new.places]),
    )
