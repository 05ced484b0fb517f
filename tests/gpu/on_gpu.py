"""Skips the tests of this folder where they cannot run; `make test-gpu` runs them."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted here: run `make test-gpu`", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)

CUDA = torch.device("cuda")
