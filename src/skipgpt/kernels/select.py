"""Which kernels run where: Triton's on a CUDA device that has them, none elsewhere.

Without any, execution `sparse` packs in plain PyTorch; see `model/packing.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch

from skipgpt.kernels.interface import Kernels

logger = logging.getLogger("skipgpt")

OLDEST = (8, 0)
"""Compute capability of the first GPUs with bfloat16 products (Ampere)."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_SEQUENCES = 64
"""The largest batch of one-token steps that the decode kernels take: one tile of rows."""

WIDEST_HEAD = 256


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """The kernels for a device and a dtype; None where there are none.

    Example:
        >>> kernels_for(torch.device("cpu"), torch.float32) is None
        True
    """
    if device.type != "cuda" or dtype not in DTYPES:
        return None
    return triton_kernels() if _capable(device.index) else None


@functools.cache
def triton_kernels() -> Kernels:
    """The Triton kernels; imports Triton, which raises an ImportError if it is absent."""
    from skipgpt.kernels import decode_attention, decode_linear, packed_attention, packed_linear

    return Kernels(
        gate_up=packed_linear.gate_up,
        row_linear=packed_linear.row_linear,
        add_linear=packed_linear.add_linear,
        attend=packed_attention.attend,
        decode_gate_up=decode_linear.decode_gate_up,
        decode_linear=decode_linear.decode_linear,
        decode_attend=decode_attention.decode_attend,
    )


@functools.cache
def _capable(index: int) -> bool:
    """Whether there is Triton, and an NVIDIA GPU that is new enough and on which a kernel runs."""
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(index) < OLDEST:
        return False
    return can_launch(torch.device("cuda", index))


def can_launch(device: torch.device) -> bool:
    """Whether a kernel really runs on a device; logs a warning if not.

    Triton builds its launcher at the first launch, with a C compiler that may be absent.
    """
    square = torch.ones(16, 16, device=device)
    rows = torch.arange(16, dtype=torch.int32, device=device)
    count = torch.full((1,), 16, dtype=torch.int32, device=device)
    try:
        triton_kernels().row_linear(square, rows, count, square, None)
    except Exception as error:  # from compiler, driver or import: all mean no kernels
        logger.warning(
            "kernels do not run on %s, kept tokens are packed in PyTorch: %s: %s",
            device,
            type(error).__name__,
            error,
        )
        return False
    return True
