"""Time and memory of runs. On a noisy machine candidates alternate in one process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skipgpt.system.hardware import wait_for
from skipgpt.system.progress import advancing

SHORT = 0.1
"""Below these seconds a run is noticeably slowed by cold processor caches."""
_REFUSALS = ("DefaultCPUAllocator", "out of memory")
"""Messages of allocators without an error class of their own: CPU and Metal."""


@dataclass(frozen=True)
class Task:
    """Something to be timed.

    Attributes:
        run: what is timed; takes what `prepare` returned.
        prepare: called before each run, not timed.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


def alternate(
    tasks: Mapping[str, Task], repeats: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Time tasks in turn, starting with another one each round; return the seconds of each.

    Where one was short in the round before, each first runs once untimed, so that it finds the
    processor caches filled by itself rather than by the task before. The first `warmup` rounds are
    untimed, and the device is synchronised before each reading of the clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    spent = dict.fromkeys(names, math.inf)
    with advancing("taking turns", unit="round") as advance, ExitStack() as stack:
        if gc.isenabled():
            stack.callback(gc.enable)
        gc.disable()
        for turn in range(warmup + repeats):
            first, short = turn % len(names), min(spent.values()) < SHORT
            # The run before leaves its caches and clock rates, so the order rotates.
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
    return seconds


def peak_memory(task: Task, device: torch.device) -> int | None:
    """Return the peak bytes during one run, including what was allocated before.

    On a CPU that is the memory of the process, which Linux tells; None where it is not known.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    given = task.prepare()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        task.run(given)
        wait_for(device)
        return int(torch.cuda.max_memory_allocated(device))
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
    except OSError:
        return None
    task.run(given)
    lines = status.read_text().splitlines()
    peaks = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return next(peaks, None)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS)
