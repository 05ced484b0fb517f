"""Which rows of text a step trains on, and which of them belong to this process.

    step        0                       1
    place       0  1  2  3  4  5  6  7  8  9 10 11 …      8 rows per step
    process     0  0  1  1  0  0  1  1  0  0  1  1 …      2 processes, 2 parts of 2 rows each

A run reads one endless sequence of epochs, each shuffled in its own way. Every step takes the next
rows of it, whatever the number of processes and parts; an epoch's last rows share a step with the
first ones of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from skipgpt.errors import ConfigError

ROWS = "rows"
"""The key of a batch that holds the places of its rows in the run, [B]."""


@dataclass(frozen=True)
class StepPartition:
    """How the rows of a step are split.

    Attributes:
        rows: rows per forward.
        parts: forwards (micro-batches) per process.
        processes: processes that share the step.
    """

    rows: int
    parts: int
    processes: int


def share_of_step(batch_size: int, accumulation: int, processes: int) -> StepPartition:
    """Split the batch_size * accumulation rows of a step equally, at most batch_size per forward.

    Raises:
        ConfigError: the processes cannot share them equally.

    Example:
        >>> share_of_step(batch_size=16, accumulation=2, processes=8)
        StepPartition(rows=4, parts=1, processes=8)
    """
    total = batch_size * accumulation
    own, left = divmod(total, processes)
    if left:
        raise ConfigError(
            "sharing the rows of a step",
            got=f"{total} rows (batch_size {batch_size} times accumulation {accumulation}) for "
            f"{processes} processes",
            expected=f"a multiple of {processes}",
            todo="change --batch-size or accumulation; together they are the rows of all processes",
        )
    parts = next(n for n in range(1, own + 1) if own % n == 0 and own // n <= batch_size)
    return StepPartition(own // parts, parts, processes)


class RunDataset(Dataset[dict[str, Any]]):
    """The rows of a run by their places in it; `count` is their number over all epochs."""

    def __init__(self, rows: Sequence[dict[str, Any]], count: int, seed: int) -> None:
        self._rows, self._count, self._seed = rows, count, seed
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> dict[str, Any]:
        epoch, index = divmod(place, len(self._rows))
        return {**self._rows[int(self._order(epoch)[index])], ROWS: place}

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            made = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._orders = {n: order for n, order in self._orders.items() if n == epoch - 1}
            self._orders[epoch] = torch.randperm(len(self._rows), generator=made)
        return self._orders[epoch]


class StepBatchSampler(Sampler[list[int]]):
    """Yields the places of the rows of each forward of one process, in order."""

    def __init__(self, share: StepPartition, steps: int, rank: int) -> None:
        self._share, self._steps, self._rank = share, steps, rank

    def __len__(self) -> int:
        return self._steps * self._share.parts

    def __iter__(self) -> Iterator[list[int]]:
        share = self._share
        for part in range(len(self)):
            first = (part * share.processes + self._rank) * share.rows
            yield list(range(first, first + share.rows))
