"""What a figure was measured on, and when that has done its work."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def hardware(device: torch.device) -> dict[str, Any]:
    """The device by name, and the versions of what computes there."""
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), **found}
    return {"device": _processor(), "threads": torch.get_num_threads(), **found}


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; a CPU has when a call returns.

    Raises:
        RuntimeError: torch finds no such device here.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
