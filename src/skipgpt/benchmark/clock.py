"""Timing that two noisy cores cannot spoil: contenders take turns in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


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
    """Seconds of every task, run in turn.

    Args:
        tasks: by name.
        repeats: rounds that count.
        device: waited for before each look at the clock.
        warmup: rounds before, that do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(warmup + repeats):
            for name, task in tasks.items():
                given = task.prepare()
                wait(device)
                started = time.perf_counter()
                task.run(given)
                wait(device)
                if turn >= warmup:
                    seconds[name].append(time.perf_counter() - started)
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return seconds


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(task: Task, device: torch.device) -> int | None:
    """The most bytes that are held during one run, all that was held before included.

    On a CPU that is the memory of the process, which Linux alone tells; elsewhere None.
    """
    given = task.prepare()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        task.run(given)
        wait(device)
        return int(torch.cuda.max_memory_allocated(device))
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
        task.run(given)
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
