"""Timing that two noisy cores cannot spoil: contenders take turns in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.hardware import wait_for


@dataclass(frozen=True)
class Task:
    """Something to be timed.

    Attributes:
        run: what is timed; takes what `prepare` returned.
        prepare: called before each run, off the clock.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


def alternate(
    tasks: Mapping[str, Task], repeats: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every task, run in turn; who begins changes from round to round.

    Args:
        tasks: by name.
        repeats: rounds that count.
        device: waited for before each look at the clock.
        warmup: rounds before, that do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(warmup + repeats):
            first = turn % len(names)
            # What ran just before leaves caches and clock rates behind.
            for name in names[first:] + names[:first]:
                task = tasks[name]
                given = task.prepare()
                wait_for(device)
                started = time.perf_counter()
                task.run(given)
                wait_for(device)
                if turn >= warmup:
                    seconds[name].append(time.perf_counter() - started)
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return seconds
