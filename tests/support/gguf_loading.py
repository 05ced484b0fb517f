"""What a loaded GGUF file is compared with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn


def same_weights(found: nn.Module, wanted: nn.Module) -> bool:
    ours, its = dict(found.named_parameters()), dict(wanted.named_parameters())
    return ours.keys() == its.keys() and all(torch.equal(ours[n], its[n]) for n in its)


WIDE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}


def divisors(context: int = 8192) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.2, heads of 8."""
    found = []
    for step in range(4):
        length = 2 * math.pi * 500000.0 ** (step / 4)
        if length < context / 4:
            found.append(1.0)
        elif length > context:
            found.append(32.0)
        else:
            smooth = (context / length - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / 32 + smooth))
    return np.array(found, np.float32)
