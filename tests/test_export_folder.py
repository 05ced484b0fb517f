"""The folder of an export is written as a whole or not at all, whatever it is called."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import skipgpt
from command import Finished
from command import skipgpt as command
from runs import logits, shared_checkpoint
from skipgpt.checkpoint.loading import load
from skipgpt.errors import CheckpointError
from skipgpt.system.atomic import staged
from tiny import byte_tokenizer

ODD_NAME = "my models ü/größe 名"


def _little_room() -> None:
    """Let files grow to 64 KiB, as on a disk with no more room; Python ignores the signal."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def names(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def exported_with_little_room(out: Path, *more: str) -> Finished:
    words = ("export", shared_checkpoint(), "--merged", "--out", out, *more)
    return command(*words, before=_little_room)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    done = exported_with_little_room(tmp_path / "a" / "b")
    assert done.status == 1
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("skipgpt: ")]
    assert "File too large" in line
    assert "room on the disk" in line
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_export_that_was_there(tmp_path: Path) -> None:
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "out")
    before = names(tmp_path)
    assert exported_with_little_room(tmp_path / "out", "--overwrite").status == 1
    assert names(tmp_path) == before


def test_the_config_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        seen.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("os.replace", watched)
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "out")
    assert seen[-1] == "config.json"
    assert "model.safetensors" in seen


def test_weights_of_a_replaced_export_are_not_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    model, _ = load(shared_checkpoint(), merge=True)
    model.save_pretrained(out, max_shard_size="20KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    (out / "notes.txt").write_text("of the user")
    skipgpt.export_merged(shared_checkpoint(), out, overwrite=True)
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert (out / "notes.txt").read_text() == "of the user"
    skipgpt.register()
    again = AutoModelForCausalLM.from_pretrained(out).eval()
    assert torch.equal(logits(again), logits(model))


def test_spaces_and_letters_beyond_ascii_are_no_trouble(tmp_path: Path) -> None:
    shutil.copytree(shared_checkpoint().parent, tmp_path / ODD_NAME)
    source, out = tmp_path / ODD_NAME / "checkpoint", tmp_path / ODD_NAME / "out put é"
    base = tmp_path / ODD_NAME / "base"
    done = command("export", source, "--merged", "--base", base, "--out", out)
    assert done.status == 0, done.stderr
    assert str(out) in done.stdout
    skipgpt.register()
    expected, _ = load(shared_checkpoint(), merge=True)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out).eval()), logits(expected))
    words = AutoTokenizer.from_pretrained(out)
    assert words("cats").input_ids == byte_tokenizer()("cats").input_ids


@pytest.mark.parametrize(
    ("error", "of_the_disk"),
    [
        (OSError(28, "No space left on device"), True),
        (PermissionError(13, "Permission denied"), True),
        (Exception("No space left on device (os error 28)"), True),  # of tokenizers
        (ValueError("GenerationConfig is invalid:\n- `top_p`"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_only_what_the_disk_refuses_is_advised_to_make_room(
    error: Exception, of_the_disk: bool, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught, staged(tmp_path / "out"):
        raise error
    assert ("room on the disk" in str(caught.value)) == of_the_disk
    assert caught.value.got == f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="writing to"):
        skipgpt.export_merged(shared_checkpoint(), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("skipgpt_config.json", "got a checkpoint"),
        ("adapter_config.json", "got a PEFT adapter"),
        ("run.json", "got a training run"),
    ],
)
def test_an_export_never_replaces_what_was_trained(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=rf"{said}.*name another folder"):
            skipgpt.export_merged(shared_checkpoint(), tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [file]
