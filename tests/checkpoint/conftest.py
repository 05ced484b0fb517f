"""A checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runs import shared_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(shared_checkpoint(), tmp_path / "checkpoint"))
