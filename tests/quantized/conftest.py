"""A tiny base with lively weights, and a checkpoint trained on it in 8 or 4 bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quantized import lively, save
from runs import run, tiny_config


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama that can be held in 4 bits, in which every weight matters."""
    return save(lively(), tmp_path / "base")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with LoRA on a 4-bit base, which lies beside it."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config("default", stages="joint", router_stage__steps=2)
    run(save(lively(), folder / "base"), folder / "checkpoint", config, quantize="4bit")
    return folder / "checkpoint"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "checkpoint"))
