"""A GGUF file of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_files import write_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The tiny Llama in float32."""
    return write_gguf(tmp_path / "model.gguf")
