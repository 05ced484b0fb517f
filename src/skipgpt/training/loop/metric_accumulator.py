"""Metrics of the steps since the last log line, kept on their device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from skipgpt.system.distributed import mean


class StepSums:
    """One sum per name and step since the last log line, over all micro-batches of the step.

    Example:
        >>> sums = StepSums()
        >>> for share, loss in ((0.5, 2.0), (0.5, 4.0)):
        ...     sums.add(loss=share * torch.tensor(loss))
        >>> sums.take()
        {'loss': tensor([3.])}
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[Tensor]] = {}
        self._open: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add to the current step, without waiting for the device."""
        for name, value in values.items():
            value = value.detach()
            self._open[name] = self._open[name] + value if name in self._open else value

    def end_step(self) -> None:
        """Close the current step, if there is one."""
        for name, value in self._open.items():
            self._steps.setdefault(name, []).append(value)
        self._open = {}

    def take(self) -> dict[str, Tensor]:
        """Return the sums of each name by step, and forget them.

        They are means over processes, all of which have to call this.
        """
        self.end_step()
        taken, self._steps = self._steps, {}
        return {name: mean(torch.stack(steps)) for name, steps in taken.items()}
