"""What a benchmark script writes beside its figures."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from benchmark_scripts import imported

record = imported("record")


def test_a_record_says_when_how_and_on_what_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "figures.json"
    monkeypatch.setattr(sys, "executable", "/home/somebody/.venv/bin/python3")
    monkeypatch.setattr(sys, "argv", ["/home/somebody/benchmarks/serving.py", "--data", "a b"])
    before = datetime.date.today()
    record.write_record(out, [{"seconds": 1.5}], repeats=3)
    written = json.loads(out.read_text())
    date = datetime.date.fromisoformat(written.pop("date"))
    assert before <= date <= datetime.date.today()
    assert isinstance(written.pop("device"), str)
    assert written == {
        "rows": [{"seconds": 1.5}],
        "repeats": 3,
        "command": "python3 benchmarks/serving.py --data 'a b'",
        "commit": record.COMMIT,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record.write_record(None, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_and_says_where_files_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=T", "-c", "user.email=t@example.invalid")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert record.commit_of(tmp_path) is None
    git("init", "--quiet")
    file = tmp_path / "file"
    file.write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "One")
    git("tag", "v1")
    assert record.commit_of(tmp_path) == git("rev-parse", "--short", "HEAD")
    file.write_text("two")
    assert record.commit_of(tmp_path) == git("rev-parse", "--short", "HEAD") + "-dirty"


def test_help_keeps_the_lines_of_example_commands() -> None:
    docstring = "Time something.\n\n    python one.py\n    python two.py --out FILE\n"
    assert docstring.strip() in record.parser_of(docstring).format_help()
