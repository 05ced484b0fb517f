"""Metrics of the steps since the last log line, kept on their device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from skipgpt.system.distributed import mean


class StepSums:
    """One sum per name and step, over however many micro-batches a step has.

    Example:
        >>> sums = StepSums()
        >>> for share, loss in ((0.5, 2.0), (0.5, 4.0)):
        ...     sums.add(loss=share * torch.tensor(loss))
        >>> sums.end_step()
        >>> sums.means()
        {'loss': 3.0}
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

    def mean_over_processes(self) -> None:
        """Replace every number by its mean over processes, all of which have to call this."""
        for steps in self._steps.values():
            steps[:] = mean(torch.stack(steps)).unbind()

    def means(self) -> dict[str, float]:
        """Return the mean over steps of each name."""
        return {name: torch.stack(steps).mean().item() for name, steps in self._steps.items()}

    def spread(self, name: str) -> float | None:
        """Return the standard deviation over steps; None for fewer than two."""
        steps = self._steps.get(name, [])
        return torch.stack(steps).std().item() if len(steps) > 1 else None

    def clear(self) -> None:
        """Forget all steps."""
        self._steps.clear()
        self._open = {}
