"""One writer per folder: who comes second is refused, and a lock ends with its process.

Another process is played by one that holds the operating system's own lock, and nothing of ours.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command import skipgpt
from skipgpt.errors import CheckpointError
from skipgpt.system.folder_lock import LOCK, writing_file, writing_to

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write('{"pid": 4711, "host": "node7", "began": "2026-01-02 03:04"}')
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_holding(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has locked a file, killed at the end of the block."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


COMMANDS = {
    "train": ("train", "none", "--data", "none"),
    "train --resume": ("train", "none", "--data", "none", "--resume"),
    "train --overwrite": ("train", "none", "--data", "none", "--overwrite"),
    "compare": ("compare", "none", "--data", "none", "--methods", "dense"),
    "export --merged": ("export", "none", "--merged"),
    "export --static": ("export", "none", "--static", "--data", "none", "--overwrite"),
    "bench": ("bench", "none"),
    "convert": ("convert", "none.pth", "--base", "none"),
    "demo": ("demo",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_writes_to_a_folder_that_another_run_writes_to(
    name: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with another_process_holding(out / LOCK):
        refused = skipgpt(*COMMANDS[name], "--out", out)
    assert (refused.status, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"skipgpt: writing to {out}: got another run that is writing there (process 4711 on node7, "
        "since 2026-01-02 03:04); expected no other run; "
        "wait until it has ended or stop it, or name another --out\n"
    )


def test_two_reports_may_share_a_folder_but_not_a_file(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    with another_process_holding(tmp_path / f".a.html{LOCK}"):
        refused = skipgpt("report", "none", "--data", "none", "-o", page)
        assert f"writing to {page}: got another run that is writing there" in refused.stderr
        other = skipgpt("report", "none", "--data", "none", "-o", tmp_path / "b.html")
        assert "another run" not in other.stderr


def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    with another_process_holding(tmp_path / LOCK) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        with writing_to(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


def test_a_thread_may_ask_again_and_another_may_not(tmp_path: Path) -> None:
    refused: list[CheckpointError] = []

    def ask() -> None:
        try:
            with writing_to(tmp_path):
                pass
        except CheckpointError as error:
            refused.append(error)

    with writing_to(tmp_path):
        with writing_to(tmp_path.parent / tmp_path.name / "."):
            pass
        other = threading.Thread(target=ask)
        other.start()
        other.join()
        assert (tmp_path / LOCK).exists()
    assert "another run" in str(refused[0])
    ask()
    assert len(refused) == 1


def test_a_folder_that_stays_empty_is_not_left(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with writing_to(out):
        assert out.is_dir()
    assert not (tmp_path / "a").exists()
    with writing_to(out):
        (out / "file").touch()
    assert [path.name for path in out.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for lock in (writing_to(tmp_path / "file"), writing_to(tmp_path / "file" / "out")):
        with pytest.raises(CheckpointError, match="name another --out"), lock:
            raise AssertionError("was let in")
    with (
        pytest.raises(CheckpointError, match="expected a folder that can be written to"),
        writing_file(Path("/proc/report.html")),
    ):
        raise AssertionError("was let in")
