"""The speed of a machine in four numbers, and where a measurement of them is kept.

Packing pays where the products it saves take longer than it does. How long either takes depends
on the machine: `skipgpt profile` measures it once; until then typical figures are used.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from skipgpt.errors import CheckpointError
from skipgpt.system.digest import json_digest
from skipgpt.system.hardware import hardware

logger = logging.getLogger("skipgpt")

ANOTHER_CACHE = "set SKIPGPT_CACHE to a folder that can be written"
"""What to do where something cannot be kept in the cache folder."""


@dataclass(frozen=True)
class Machine:
    """The speed of a device, as far as it decides what packing costs and saves.

    Attributes:
        flops: FLOPs per second of large matrix products.
        bandwidth: bytes of weights read per second.
        mlp_packing: seconds that packing tokens for an MLP takes, however few they are.
        attn_packing: likewise for attention.
    """

    flops: float
    bandwidth: float
    mlp_packing: float
    attn_packing: float

    def product_seconds(self, weights: int, rows: float, number_bytes: float) -> float:
        """Seconds to multiply `rows` tokens with so many weights.

        Example:
            >>> typical(torch.device("cpu")).product_seconds(1_000_000, 512, 4)
            0.01024
        """
        return max(2 * weights * rows / self.flops, weights * number_bytes / self.bandwidth)


def typical(device: torch.device) -> Machine:
    """Figures of a common machine: a few cores, or a data-centre GPU in bfloat16."""
    if device.type == "cpu":
        return Machine(flops=1e11, bandwidth=1.5e10, mlp_packing=5e-5, attn_packing=2e-4)
    return Machine(flops=2e14, bandwidth=1.5e12, mlp_packing=5e-5, attn_packing=2e-4)


def profile_of(device: torch.device, dtype: torch.dtype) -> Machine:
    """The measured figures of a device in a dtype, or else the typical ones."""
    return stored_profile(device, dtype) or typical(device)


def stored_profile(device: torch.device, dtype: torch.dtype) -> Machine | None:
    """The figures that `skipgpt profile` stored for a device and dtype; None if not readable."""
    try:
        path = path_of(device, dtype)
    except CheckpointError:  # a user without a home folder has stored nothing
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        machine = Machine(**{f.name: float(values[f.name]) for f in dataclasses.fields(Machine)})
        if not all(math.isfinite(each) and each > 0 for each in dataclasses.astuple(machine)):
            raise ValueError("a figure is not a number above 0")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        logger.warning("%s is not read (%s); `skipgpt profile` writes it anew", path, error)
        return None
    return machine


def store_profile(machine: Machine, device: torch.device, dtype: torch.dtype) -> Path:
    """Write a measurement to where `stored_profile` reads it.

    Raises:
        CheckpointError: the folder cannot be written, or the user has none.
    """
    facts = dataclasses.asdict(machine) | {"dtype": str(dtype), **hardware(device)}
    path = path_of(device, dtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:  # its message names the file
        raise CheckpointError(
            "keeping the profile of this machine", got=str(error), todo=ANOTHER_CACHE
        ) from error
    return path


def path_of(device: torch.device, dtype: torch.dtype) -> Path:
    """The file for a device, its threads and versions, and a dtype, in the user's cache folder.

    Raises:
        CheckpointError: the user has no home folder, and no other is named.
    """
    digest = json_digest([hardware(device), str(dtype)], 12)
    return cache_folder() / f"machine-{device.type}-{digest}.json"


def cache_folder() -> Path:
    """The folder for measurements: SKIPGPT_CACHE, or `skipgpt` in the user's cache folder.

    Raises:
        CheckpointError: the user has no home folder, and no other is named.
    """
    given = os.environ.get("SKIPGPT_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(given or Path.home() / ".cache")
    except RuntimeError as error:
        raise CheckpointError(
            "finding the cache folder", got=str(error), todo=ANOTHER_CACHE
        ) from error
    return home if os.environ.get("SKIPGPT_CACHE") else home / "skipgpt"
