"""What every set of kernels offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class Kernels:
    """One set of kernels for kept tokens; the functions of `triton_kernels` say what each does."""

    gate_up: Callable[..., Tensor]
    row_linear: Callable[..., Tensor]
    add_linear: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    decode_gate_up: Callable[..., Tensor]
    decode_linear: Callable[..., Tensor]
    decode_attend: Callable[..., Tensor]
