"""Where a model comes from, where it is put, and in which numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What `skipgpt.load` takes by these names, for functions that load models themselves.

    Attributes:
        device: where models are put.
        dtype: of the base model.
        base: where the base model lies, if not where the checkpoint says.
        quantize: `int8`, for a checkpoint that is loaded in 8 bits.
    """

    device: str = "cpu"
    dtype: str = "auto"
    base: str | None = None
    quantize: str | None = None
