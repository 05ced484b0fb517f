"""The memory that training takes on each of several devices, computed from what there is to hold.

what            whole (single, ddp)   zero2             fsdp2, zero3
weights         all                   all               a shard, and the running layers whole
gradients       of what trains        a shard           a shard
optimizer       8 B per parameter     a shard, 12       a shard; zero3 12
buckets         ddp: as gradients     as gradients      -
activations     of its own rows       of its own rows   of its own rows

What trains is float32 whatever the base is, so a gradient is 4 bytes per parameter and AdamW's two
moments are 8; DeepSpeed trains copies of the weights, 4 more. A base that stays frozen has none.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from skipgpt.errors import ConfigError

Layout = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]

_FLOAT32 = 4
_AT_WORK = 2
"""Layers gathered at a time: the one that runs, and the one that is prefetched meanwhile."""


@dataclass(frozen=True)
class Held:
    """What a stage has to hold, in all.

    Attributes:
        parameters: of the base model.
        weight_bytes: of the base model.
        layer_bytes: of its largest decoder layer.
        outer_bytes: of what is in no layer: embeddings and head.
        trained: parameters that train.
        trained_tensors: how many tensors these are.
    """

    parameters: int
    weight_bytes: int
    layer_bytes: int
    outer_bytes: int
    trained: int
    trained_tensors: int


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: of the base and of what trains, sharded if the layout shards them.
        at_work: weights that are gathered while their layers run.
        gradients: of what trains.
        optimizer: AdamW's moments and step counts, and copies of weights.
        buckets: copies of gradients that are sent.
        activations: kept by a forward for its backward pass.
        logits: two buffers in float32 that the backward pass of the loss holds at once: the
            gradient of the log-probabilities, and that of the logits. The log-probabilities
            themselves are among the activations. With a teacher, what is held beyond those: its
            logits, the student's, their gradient, and the buffers of the comparison.
    """

    weights: float
    at_work: float
    gradients: float
    optimizer: float
    buckets: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it; what a library or an allocator takes for itself is not counted."""
        return float(sum(dataclasses.astuple(self)))


def check_layout(layout: str, processes: int) -> Layout:
    """Return the layout; raise a ConfigError if it is unknown or does not fit the processes."""
    if layout not in get_args(Layout):
        near = difflib.get_close_matches(layout, get_args(Layout), n=1, cutoff=0.5)
        raise ConfigError(
            "choosing the layout",
            got=repr(layout),
            expected="one of " + ", ".join(get_args(Layout)),
            todo=f"did you mean {near[0]!r}?" if near else "",
        )
    if processes < 1:
        raise ConfigError(
            "choosing how many processes train", got=str(processes), expected="1 or more"
        )
    if layout == "single" and processes > 1:
        raise ConfigError(
            "choosing the layout",
            got=f"single, for {processes} processes",
            expected="ddp, fsdp2, zero2 or zero3",
        )
    found: Layout = layout  # type: ignore[assignment]
    return found


def memory(
    held: Held, layout: Layout, processes: int, *, activations: float, logits: float
) -> Memory:
    """Divide what there is to hold over devices, one per process.

    `activations` are the bytes that a forward of one process keeps, `logits` those of the gradients
    of its log-probabilities and logits.

    Example:
        >>> held = Held(1000, 2000, 400, 400, trained=10, trained_tensors=2)
        >>> memory(held, "fsdp2", 2, activations=0, logits=0).optimizer
        48.0
    """
    in_pieces = layout in ("fsdp2", "zero3")
    states_in_pieces = in_pieces or layout == "zero2"
    copies = 1 if layout in ("zero2", "zero3") else 0
    trained = _FLOAT32 * held.trained
    states = trained * (2 + copies) / (processes if states_in_pieces else 1)
    return Memory(
        weights=(held.weight_bytes + trained) / (processes if in_pieces else 1),
        at_work=_AT_WORK * held.layer_bytes + held.outer_bytes if in_pieces else 0,
        gradients=trained / (processes if states_in_pieces else 1),
        optimizer=states + _FLOAT32 * held.trained_tensors,
        buckets=trained if layout in ("ddp", "zero2") else 0,
        activations=activations,
        logits=logits,
    )
