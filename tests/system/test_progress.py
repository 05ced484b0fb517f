"""What is said of work under way where standard error is no terminal."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest

from command import skipgpt
from runs import run, shared_checkpoint, tiny_config, write_documents
from skipgpt.system import progress
from skipgpt.system.progress import Phase, advancing, duration, innermost_phase


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with advancing("reading", announced=True) as advance:
        advance(1, 2)
        advance.tell("fast")
    assert _lines(capsys) == []


@pytest.mark.usefixtures("at_once")
def test_announced_phases_say_that_they_begin_and_others_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with advancing():
        with advancing("reading the text", announced=True), advancing("encoding"):
            pass
        with advancing("stage router", unit="step", total=20, announced=True) as advance:
            advance(20, 20)
            advance.tell("loss 2.500, 800 tokens/s")
    assert _lines(capsys) == [
        "reading the text",
        "stage router: step 0 of 20",
        "stage router: step 20 of 20, loss 2.500, 800 tokens/s",
    ]


def test_a_long_step_is_said_again_and_again_but_no_more_often_than_due(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    monkeypatch.setattr(progress, "EVERY", 0.5)
    began = time.monotonic()
    with advancing("comparing", unit="row", total=8) as whole:
        whole(2, 8)
        with advancing("loading the base model"):  # takes one step, and nobody is told of any
            time.sleep(1.3)
    spent = time.monotonic() - began
    said = _lines(capsys)
    assert 2 <= len(said) <= 1 + spent / 0.5
    for line in said:
        assert re.fullmatch(
            r"comparing: row 2 of 8 \| loading the base model(: \d s so far)?", line
        )


def test_time_left_is_that_of_the_steps_taken_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    phase = Phase("stage router", "step", done=40, total=100)
    assert phase.line() == "stage router: step 40 of 100"
    now += 50.0
    phase(50, 100)  # 10 steps in 50 s, so 50 more take 250
    phase.tell("loss 2.500")
    assert phase.line() == "stage router: step 50 of 100, loss 2.500, about 4 min left"
    assert phase.line(timed=False) == "stage router: step 50 of 100, loss 2.500"
    phase(100, 100)
    assert phase.line() == "stage router: step 100 of 100, loss 2.500, in 50 s"
    unknown = Phase("encoding the text", "document")
    now += 3.0
    unknown(1024)
    assert unknown.line() == "encoding the text: document 1,024, 3 s so far"


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 119, 120, 7000, 9000)] == [
        "0 s", "119 s", "2 min", "117 min", "2.5 h",
    ]  # fmt: skip


@pytest.mark.usefixtures("at_once")
def test_a_terminal_gets_bars_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with advancing("reading", unit="file", announced=True) as advance:
        advance.tell("fast")
        advance(1, 2)
        assert innermost_phase() == "reading"
    assert "reading" in screen.getvalue()
    assert "fast" in screen.getvalue()
    assert "reading: file" not in screen.getvalue()
    assert innermost_phase() == ""


@pytest.mark.usefixtures("at_once")
def test_of_several_processes_the_first_one_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with advancing("reading", announced=True) as advance:
        advance(1, 2)
    assert _lines(capsys) == []


@pytest.mark.usefixtures("at_once")
def test_a_run_says_its_phases_and_of_steps_what_they_reach(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("default", stages="fit,router,lora", router__stand_in=4)
    run(base_folder, tmp_path / "out", config)
    said = _lines(capsys)
    begun = [line.split(",")[0] for line in said]
    order = [
        "reading the text and cutting it into rows",
        "measuring the dense model on held-out text",
        "stage fit: fitting stand-ins",
        "stage fit: measuring costs",
        "stage fit: fitting routers",
        "stage fit: searching the threshold of the target",
        "stage fit: fitting stand-ins to what skips",
        "calibrating the curve",
        "measuring the model on held-out text",
        "stage router: step 0 of 6",
        "stage lora: step 0 of 4",
    ]
    first = [begun.index(line) for line in order]
    assert first == sorted(first)
    for stage, steps in (("router", 6), ("lora", 4)):
        end = rf"stage {stage}: step {steps} of {steps}, loss \d+\.\d{{3}}, sparsity -?0\.\d{{3}}, "
        assert any(re.match(end + r"[\d,]+ tokens/s", line) for line in said), said


def say_each_step() -> None:
    """Let phases print their line whenever they advance, and not by time."""
    advance = Phase.__call__

    def saying(phase: Phase, *numbers: int) -> None:
        advance(phase, *numbers)
        sys.stderr.write(f"{phase.line(timed=False)}\n")

    Phase.__call__ = saying


def _said_of_reading(folder: Path, command: str, *more: object) -> list[str]:
    text, size = write_documents(folder, count=12), ("--block-size", 64, "--batch-size", 4)
    where = (command, shared_checkpoint(), *more, text, *size)
    done = skipgpt(*where, before=say_each_step, folder=folder)
    assert done.status == 0, done.stderr
    of = ("reading the text: pass", "running the text: row")
    return [line for line in done.stderr.splitlines() if line.startswith(of)]


# 12 rows of 64 tokens in fours; the last row is shorter, and runs alone.
ROWS = [f"running the text: row {n} of 12" for n in (4, 8, 11, 12)]


def test_show_counts_the_rows_of_its_text(tmp_path: Path) -> None:
    assert _said_of_reading(tmp_path, "show", "--text") == ROWS


def test_a_report_counts_how_often_it_reads_its_text_and_the_rows_of_each_time(
    tmp_path: Path,
) -> None:
    said = _said_of_reading(tmp_path, "report", "--out", "report.json", "--data")
    # Nine sparsities of the dial, the checkpoint's own, and the dense base.
    passes = [[*ROWS, f"reading the text: pass {n} of 11"] for n in range(1, 12)]
    assert said == [line for each in passes for line in each]
