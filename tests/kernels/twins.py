"""The kernels in Triton's interpreter, their plain twins, and inputs for both."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET is not 1: nothing is interpreted", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)

from skipgpt.kernels.interface import Kernels
from skipgpt.kernels.select import triton_kernels

FAST: Kernels = triton_kernels()

# Sums of a few hundred products of normal numbers, in another order. Float16 has 11 bits: what
# reaches 30 is rounded by up to 0.016, and plain twins round once more on the way.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 2e-5},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float16"])


def same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to roundings of their dtype, and finite."""
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, **TOLERANCE[expected.dtype])


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, of the size of a module's input."""
    return torch.randn(*shape).to(dtype)


def weights(outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights whose products are as large as their inputs."""
    return (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)


def keep_some(batch: int, tokens: int, kept: int) -> Tensor:
    """[batch, tokens] bool with so many kept, anywhere."""
    keep = torch.zeros(batch * tokens, dtype=torch.bool)
    keep[torch.randperm(batch * tokens)[:kept]] = True
    return keep.view(batch, tokens)
