"""Training and evaluation mode of a module, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode inside the block, then back into its own."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)
