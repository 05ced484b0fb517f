"""Writing leaves the old checkpoint or the new one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import logits, make_checkpoint, shared_checkpoint
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.info import CheckpointInfo, has_adapter
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import save
from skipgpt.errors import CheckpointError
from skipgpt.model.surgery import routers


def test_a_folder_that_holds_a_checkpoint_is_refused_unless_overwriting(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"already holds a checkpoint.*--overwrite"):
        make_checkpoint(base_folder, tmp_path / "out")
    make_checkpoint(base_folder, tmp_path / "out", overwrite=True)


def test_routers_alone_over_routers_and_lora_leave_no_lora(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out", lora=True)
    model, info = make_checkpoint(base_folder, tmp_path / "out", overwrite=True)
    assert not has_adapter(info)
    assert not (tmp_path / "out" / "lora").exists()
    loaded, _ = load(tmp_path / "out")
    assert not hasattr(loaded, "peft_config")
    assert torch.equal(logits(loaded), logits(model))


def test_an_adapter_folder_that_the_config_does_not_list_is_ignored(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out")
    shutil.copytree(shared_checkpoint() / "lora", tmp_path / "out" / "lora")
    assert not hasattr(load(tmp_path / "out")[0], "peft_config")


def _other_model(folder: Path) -> tuple[torch.nn.Module, CheckpointInfo]:
    model, _ = load(folder)
    for router in routers(model).values():
        router.weight.data.neg_()
    return model, read_info(folder)


def _holds_what_it_held(folder: Path, expected: torch.Tensor, names: set[str]) -> None:
    assert torch.equal(logits(load(folder)[0]), expected)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*")} == names


def test_a_disk_that_is_full_while_tensors_are_written_leaves_the_old_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(load(checkpoint)[0])
    names = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*")}
    model, info = _other_model(checkpoint)

    def full(tensors: Any, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*room on the disk"):
            save(model, checkpoint, info, overwrite=True)
    _holds_what_it_held(checkpoint, expected, names)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_rename_that_fails_leaves_the_old_checkpoint(
    number: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(load(checkpoint)[0])
    names = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*")}
    model, info = _other_model(checkpoint)
    replace, calls = os.replace, []

    def failing(source: Any, target: Any) -> None:
        if "safetensors" in str(target) or "json" in str(target) or "README" in str(target):
            calls.append(target)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", failing)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(model, checkpoint, info, overwrite=True)
    assert len(calls) >= number
    _holds_what_it_held(checkpoint, expected, names)


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(checkpoint: Path) -> None:
    model, info = _other_model(checkpoint)
    with pytest.raises(CheckpointError, match="writing to"):
        save(model, checkpoint / "README.md" / "below a file", info)
