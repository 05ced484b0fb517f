"""Fixtures of conversions."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def written(tmp_path):
    """Saves tensors as the authors do and returns the path."""

    def write(file, name="router.pth"):
        torch.save(file, tmp_path / name)
        return tmp_path / name

    return write
