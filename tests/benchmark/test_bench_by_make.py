"""What `make bench-…` runs, apart from running it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from skipgpt.benchmark.grid import Grid
from skipgpt.cli import app

ROOT = Path(__file__).parents[2]


def made(target: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """A dry run; of the environments nothing is made."""
    order = ["make", "--dry-run", target, *variables]
    return subprocess.run(order, cwd=ROOT, capture_output=True, text=True, check=False)


def benches(target: str, *variables: str) -> list[list[str]]:
    """The arguments of each `skipgpt bench` that a target runs."""
    done = made(target, *variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if re.match(r"\S*skipgpt bench ", line)]


TARGETS = [
    ("bench-160m",),
    ("bench-350m",),
    ("bench-nano",),
    ("bench-lora",),
    ("bench-int8",),
    ("bench-rivals",),
    ("bench-gpu",),
    ("bench-gpu", "LEARNED=CHECKPOINT"),
    ("bench-learned", "LEARNED=CHECKPOINT"),
]


@pytest.mark.parametrize("target", TARGETS, ids=" ".join)
def test_every_line_is_a_command_that_bench_takes(
    target: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class TakenError(Exception):
        pass

    def take(_: object, grid: Grid) -> None:
        assert grid.phases
        raise TakenError

    monkeypatch.setattr("skipgpt.benchmark.bench.bench", take)
    for name in ("shape", "checkpoint"):
        monkeypatch.setattr(f"skipgpt.benchmark.subject.subject_of_{name}", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    lines = benches(*target)
    assert lines
    for line in lines:
        with pytest.raises(TakenError):
            app([each for each in line if each != "--quiet"], standalone_mode=False)
    outs = [line[line.index("--out") + 1] for line in lines]
    assert len(set(outs)) == len(outs)
    assert all((ROOT / out).parent.parent == ROOT / "benchmarks/results" for out in outs)


def test_learned_routes_need_a_checkpoint_and_no_text() -> None:
    done = made("bench-learned")
    assert done.returncode != 0
    assert "name a checkpoint: make bench-learned LEARNED=" in done.stderr
    assert "skipgpt bench" not in done.stdout
    data = {line[line.index("--data") + 1] for line in benches("bench-learned", "LEARNED=out")}
    assert data == {"stdlib"}
    own = benches("bench-learned", "LEARNED=out", "TEXT=web.jsonl")
    assert {line[line.index("--data") + 1] for line in own} == {"web.jsonl"}


def test_the_demos_checkpoint_is_timed_unless_another_one_is_named() -> None:
    assert ["demo-out/checkpoint" in line for line in benches("bench-nano")] == [True]
    assert ["out" in line for line in benches("bench-nano", "LEARNED=out")] == [True]
