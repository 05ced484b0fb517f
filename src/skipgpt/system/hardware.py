"""The hardware that a figure was measured on, and waiting until it has finished."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def hardware(device: torch.device) -> dict[str, Any]:
    """The name of the device, and the versions of the libraries that compute on it."""
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), **found}
    return {"device": _processor(), "threads": torch.get_num_threads(), **found}


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU has when a call returns.

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
