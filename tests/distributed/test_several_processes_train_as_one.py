"""Two processes train what one trains: curves, checkpoints, and what is left after a kill."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command import Finished
from launched import TELLING_PIECES, curve, is_logged, kill_after, launch, launch_by, start
from runs import write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from tiny import LONG, OLDEST, byte_tokenizer, tiny_base

BOTH = ("--stages", "router,lora", "--set", "router.stand_in=2", "--set", "router.normalize=true")
# Sums over processes are taken in another order, which moves float32 numbers by 1e-6.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "base"
    tiny_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    write_documents(folder.parent)
    return folder


@pytest.fixture(scope="module")
def alone(base: Path) -> Path:
    """What one process makes of both stages."""
    ended = launch(base, base.parent / "alone", *BOTH)
    assert ended.status == 0, ended.stderr
    return base.parent / "alone"


def _same(one: Path, other: Path) -> None:
    for mine, theirs in zip(curve(one), curve(other), strict=True):
        assert mine == pytest.approx(theirs, abs=CLOSE)
    for name in ("routers.safetensors", "lora/adapter_model.safetensors"):
        mine, theirs = load_file(one / name), load_file(other / name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert tensor.dtype == theirs[key].dtype
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=CLOSE)
    files = [sorted(str(p.relative_to(out)) for p in out.rglob("*")) for out in (one, other)]
    assert files[0] == files[1]


def _lie_as_the_layout_says(folder: Path, stage: str, layout: str) -> None:
    first, second = (
        [each for each in told if each["stage"] == stage]
        for told in (
            [json.loads(line) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]
            for rank in range(2)
        )
    )
    assert {each["kind"] for each in first} >= {"base", "router", stage}
    for here, there in zip(first, second, strict=True):
        assert here["name"] == there["name"]
        if layout != "fsdp2":
            assert here["here"] == there["here"] == here["whole"]
            continue
        assert here["in_pieces"], here
        assert here["here"] + there["here"] == here["whole"]
        if here["kind"] == "base":
            assert 0 < here["here"] < here["whole"]


def _trained_both_stages(
    ended: Finished, layout: str, alone: Path, pieces: Path, two: Path
) -> None:
    assert ended.status == 0, ended.stderr
    for stage in ("router", "lora"):
        _lie_as_the_layout_says(pieces, stage, layout)
    _same(two, alone)
    assert json.loads(ended.stdout)["info"]["stages"] == ["router", "lora"]
    assert len(curve(alone)) == 6 + 4
    load(two)
    mine, theirs = read_info(two), read_info(alone)
    assert mine.sparsity == pytest.approx(theirs.sparsity, abs=CLOSE)


# On the newest pins a launcher starts the same below. DDP is tried there too, with two parts.
@pytest.mark.skipif(not (LONG or OLDEST), reason="a launcher starts the same with these packages")
def test_two_processes_with_a_part_of_each_weight_train_both_stages_as_one_does(
    base: Path, alone: Path, tmp_path: Path
) -> None:
    two = {"processes": 2, "layout": "fsdp2", "pieces": tmp_path}
    ended = launch(base, tmp_path / "two", *BOTH, "--json", **two)
    _trained_both_stages(ended, "fsdp2", alone, tmp_path, tmp_path / "two")


# Accelerate starts its processes as torchrun does, so the long suite alone tries all launchers.
@pytest.mark.skipif(OLDEST, reason="processes are forked with the oldest packages, not launched")
@pytest.mark.parametrize("launcher", ["fsdp2", *(["torchrun", "ddp"] if LONG else [])])
def test_two_processes_of_a_launcher_train_both_stages_as_one_does(
    launcher: str, base: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIECES_FOLDER", str(tmp_path))
    ended = launch_by(launcher, base, tmp_path / "two", *BOTH, "--json", program=TELLING_PIECES)
    _trained_both_stages(ended, launcher, alone, tmp_path, tmp_path / "two")


def test_two_processes_with_two_parts_each_train_as_one_batch(
    base: Path, alone: Path, tmp_path: Path
) -> None:
    parts = ("--set", "batch_size=1", "--set", "accumulation=4")
    ended = launch(base, tmp_path / "two", *BOTH, *parts, processes=2)
    assert ended.status == 0, ended.stderr
    _same(tmp_path / "two", alone)


@pytest.mark.parametrize(("layout", "then"), [("ddp", 2), ("fsdp2", 1)])
def test_a_run_that_lost_a_process_is_resumed_on_as_many_or_another_number(
    layout: str, then: int, base: Path, alone: Path, tmp_path: Path
) -> None:
    saving = (*BOTH, "--set", "save_every=1")
    with start(base, tmp_path / "two", *saving, processes=2, layout=layout) as running:
        kill_after(running, 1, lambda: is_logged(tmp_path / "two", step=3))
        first, second = (each.end(90) for each in running.all)
    assert second.status == -signal.SIGKILL
    assert first.status == 1
    assert "one that ended early" in first.stderr
    assert "Traceback" not in first.stderr
    assert len(curve(tmp_path / "two")) < 10
    ended = launch(base, tmp_path / "two", *saving, "--resume", processes=then)
    assert ended.status == 0, ended.stderr
    _same(tmp_path / "two", alone)


def test_a_run_of_one_process_is_resumed_in_pieces(base: Path, alone: Path, tmp_path: Path) -> None:
    saving = (*BOTH, "--set", "save_every=1")
    state = tmp_path / "out" / "trainer" / "router" / "checkpoint-2"
    with start(base, tmp_path / "out", *saving) as running:
        kill_after(running, 0, state.exists)
    ended = launch(base, tmp_path / "out", *saving, "--resume", processes=2, layout="fsdp2")
    assert ended.status == 0, ended.stderr
    _same(tmp_path / "out", alone)


def test_an_error_of_all_processes_is_told_once(base: Path, tmp_path: Path) -> None:
    ended = launch(base, tmp_path / "out", "--set", "batch_size=3", processes=2)
    assert ended.status != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("skipgpt: ")]
    assert len(lines) == 1
    assert "3 rows" in lines[0]
    assert "2 processes" in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_process_that_writes_ends_all_with_one_message(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    ended = launch(base, tmp_path / "out", processes=2)
    assert ended.status != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("skipgpt: ")]
    assert len(lines) == 1
    assert "got a file; expected a folder" in lines[0]
