"""Timing that two noisy cores cannot spoil: contenders take turns in one process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.system.hardware import wait_for
from skipgpt.system.progress import Phase, advancing

SHORT = 0.1
"""Seconds of a run in which filling the caches of the processor is a part that counts."""


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

    Where a run is short, each is run once more before, off the clock: caches are then filled by the
    task itself, as when it runs again and again, rather than by the one before.

    Args:
        tasks: by name.
        repeats: rounds that count.
        device: waited for before each look at the clock.
        warmup: rounds before, that do not count.
    """
    with advancing("taking turns", unit="round") as advance:
        return _alternate(tasks, repeats, device, warmup, advance)


def _alternate(
    tasks: Mapping[str, Task], repeats: int, device: torch.device, warmup: int, advance: Phase
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    spent = dict.fromkeys(names, math.inf)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(warmup + repeats):
            first, short = turn % len(names), min(spent.values()) < SHORT
            # What ran just before leaves caches and clock rates behind.
            for name in names[first:] + names[:first]:
                task = tasks[name]
                if short:
                    task.run(task.prepare())
                given = task.prepare()
                wait_for(device)
                started = time.perf_counter()
                task.run(given)
                wait_for(device)
                spent[name] = time.perf_counter() - started
                if turn >= warmup:
                    seconds[name].append(spent[name])
            gc.collect()
            advance(turn + 1, warmup + repeats)
    finally:
        if collecting:
            gc.enable()
    return seconds
