"""What a person gets wrong: exit status 1 or 2, one line on standard error, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import skipgpt
from runs import ARGUMENTS, shared_checkpoint, write_documents

CHECKPOINT, TEXT, BASE, EMPTY, OUT = "CHECKPOINT", "TEXT", "BASE", "EMPTY", "OUT"
TRAIN = ("train", BASE, "--data", TEXT, "--out", OUT, *ARGUMENTS)

WRONG_USAGE = {
    "no data": (("train", BASE, "--out", OUT), "--data"),
    "unknown verb": (("trian",), "trian"),
    "unknown option": ((*TRAIN, "--stesp", "3"), "--stesp"),
    "sparsity above its range": ((*TRAIN, "--sparsity", "1.5"), "0 to 0.95"),
    "sparsity in percent": (("eval", CHECKPOINT, "--text", TEXT, "--sparsity", "25"), "0 to 0.95"),
    "sparsity no number": ((*TRAIN, "--sparsity", "nan"), "target_sparsity: got nan"),
    "sparsity a word": ((*TRAIN, "--sparsity", "half"), "Invalid value for '--sparsity'"),
    "misspelt setting": ((*TRAIN, "--set", "router_stage.alhpa=3"), "router_stage.alpha"),
    "setting without a value": ((*TRAIN, "--set", "batch_size"), "key=value"),
    "setting of the wrong type": ((*TRAIN, "--set", "batch_size=big"), "'big'"),
    "unknown recipe": ((*TRAIN, "--recipe", "papper"), "paper or default"),
    "unknown stage": ((*TRAIN, "--stages", "router,heal"), "'heal'"),
    "lora without routers": ((*TRAIN, "--stages", "lora"), "routers to heal around"),
    "three numbers of steps": ((*TRAIN, "--steps", "1,2,3"), "1,2,3"),
    "no batch": ((*TRAIN, "--batch-size", "0"), "1 or more"),
    "a config that is no file": ((*TRAIN, "--config", "none.toml"), "none.toml"),
    "unknown device": (("eval", CHECKPOINT, "--text", TEXT, "--device", "tpu9"), "tpu9"),
    "unknown dtype": (("eval", CHECKPOINT, "--text", TEXT, "--dtype", "int8"), "int8"),
    "unknown execution": (("eval", CHECKPOINT, "--text", TEXT, "--execution", "fast"), "fast"),
    "no rows a forward": (("eval", CHECKPOINT, "--text", TEXT, "--batch-size", "0"), "batch"),
    "fewer than no rows": (("eval", CHECKPOINT, "--text", TEXT, "--batch-size", "-1"), "batch"),
    "no tokens per row": (("eval", CHECKPOINT, "--text", TEXT, "--block-size", "0"), "block_size"),
    "no prompt": (("generate", CHECKPOINT), "standard input"),
    "no new tokens": (("generate", CHECKPOINT, "x", "--max-new-tokens", "0"), "1 or more"),
    "export of no form": (("export", CHECKPOINT, "--out", OUT), "--merged"),
}
FAILED = {
    "no such checkpoint": (("show", "nowhere"), "skipgpt train"),
    "a folder without a checkpoint": (("eval", EMPTY, "--text", TEXT), "skipgpt_config.json"),
    "no such text": (("eval", CHECKPOINT, "--text", "none.txt"), "none.txt"),
    "an empty folder of text": (("eval", CHECKPOINT, "--text", EMPTY), "EMPTY"),
    "no such base": (("train", "no-base", "--data", TEXT, "--out", OUT), "no-base"),
    "text too short": ((*TRAIN, "--block-size", "5000"), "too short"),
    "nothing to resume": ((*TRAIN, "--resume"), "without --resume"),
    "a folder in use": (("train", BASE, "--data", TEXT, "--out", CHECKPOINT), "--overwrite"),
    "no such router file": (("convert", "no.pth", "--base", BASE, "--out", OUT), "no.pth"),
}


@pytest.fixture
def places(base_folder: Path, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "EMPTY").mkdir()
    return {
        CHECKPOINT: str(shared_checkpoint()),
        TEXT: str(write_documents(tmp_path)),
        BASE: str(base_folder),
        EMPTY: str(tmp_path / "EMPTY"),
        OUT: str(tmp_path / "OUT"),
    }


@pytest.mark.parametrize("name", WRONG_USAGE)
def test_wrong_usage_ends_in_status_two(name: str, places: dict[str, str], tmp_path: Path) -> None:
    arguments, words = WRONG_USAGE[name]
    finished = skipgpt(*(places.get(a, a) for a in arguments), folder=tmp_path)
    assert (finished.status, finished.stdout) == (2, ""), finished.stderr
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    if finished.stderr.startswith("skipgpt: "):
        assert len(finished.stderr.splitlines()) == 1
    else:  # typer's own words
        assert finished.stderr.startswith("Usage: skipgpt")
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("name", FAILED)
def test_work_that_failed_ends_in_status_one_and_one_line(
    name: str, places: dict[str, str], tmp_path: Path
) -> None:
    arguments, words = FAILED[name]
    finished = skipgpt(*(places.get(a, a) for a in arguments), folder=tmp_path)
    assert (finished.status, finished.stdout) == (1, ""), finished.stderr
    (line,) = finished.stderr.splitlines()
    assert line.startswith("skipgpt: ")
    assert "unexpected" not in line
    assert words in line


def test_json_does_not_change_how_an_error_is_told(tmp_path: Path) -> None:
    told = skipgpt("show", "nowhere", folder=tmp_path)
    assert skipgpt("show", "nowhere", "--json", folder=tmp_path) == told


def test_quiet_does_not_hide_an_error(places: dict[str, str], tmp_path: Path) -> None:
    arguments = ("eval", places[CHECKPOINT], "--text", "none.txt")
    told = skipgpt(*arguments, folder=tmp_path)
    assert "none.txt" in told.stderr
    assert skipgpt(*arguments, "--quiet", folder=tmp_path) == told


def test_traceback_shows_where_an_error_arose(tmp_path: Path) -> None:
    finished = skipgpt("show", "nowhere", "--traceback", folder=tmp_path)
    assert finished.status == 1
    assert "Traceback (most recent call last)" in finished.stderr
    assert "read_info" in finished.stderr
    assert "CheckpointError" in finished.stderr


def _break_families() -> None:
    import skipgpt.cli.shared.options as options

    def broken(*_: object) -> None:
        raise RuntimeError("a mistake\nof two lines")

    options.emit = broken


def test_a_mistake_of_ours_is_one_line_too(tmp_path: Path) -> None:
    finished = skipgpt("families", before=_break_families)
    assert finished.status == 1
    assert finished.stderr == (
        "skipgpt: unexpected RuntimeError: a mistake of two lines; --traceback shows where\n"
    )
    shown = skipgpt("families", "--traceback", before=_break_families)
    assert "in broken" in shown.stderr
