"""Peak memory of a run, and detection of out-of-memory errors."""

from __future__ import annotations

from pathlib import Path

import torch

from skipgpt.benchmark.timing.clock import Task
from skipgpt.system.hardware import wait_for

_REFUSALS = ("DefaultCPUAllocator", "out of memory")
"""Messages of allocators without an error class of their own: CPU and Metal."""


def peak_memory(task: Task, device: torch.device) -> int | None:
    """Return the peak bytes during one run, including what was allocated before.

    On a CPU that is the memory of the process, known on Linux only; None elsewhere.
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
        task.run(given)
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS)
