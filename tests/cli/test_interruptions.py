"""Ctrl-C, SIGTERM and SIGKILL at a real process in the middle of training."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import Finished, skipgpt
from runs import ARGUMENTS, metrics, weights, write_documents


@pytest.fixture
def command(base_folder: Path, tmp_path: Path) -> Callable[..., Finished]:
    """`skipgpt train` of a tiny router stage into a folder."""
    data = write_documents(tmp_path)

    def train(out: str, *more: str, **options: Any) -> Finished:
        saving = ("--recipe", "paper", "--set", "save_every=2", "--json")
        arguments = ("--data", data, "--out", tmp_path / out, *ARGUMENTS, *saving, *more)
        return skipgpt("train", base_folder, *arguments, **options)

    return train


def _signals_at(step: int, *numbers: int) -> None:
    """Let the process signal itself after a step, which it notices at the end of the next."""
    from skipgpt.training.callbacks import MetricsFile

    on_log = MetricsFile.on_log

    def logged(self: MetricsFile, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        on_log(self, args, state, *rest, **more)
        if state.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    MetricsFile.on_log = logged


def _interrupt_while_reading() -> None:
    import skipgpt.training.run as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run.load_blocks = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)


def test_a_signalled_run_ends_in_one_line_and_resumes_to_the_same_end(
    command: Callable[..., Finished], tmp_path: Path
) -> None:
    straight = command("straight")
    assert straight.status == 0, straight.stderr
    for name in ("SIGINT", "SIGTERM"):
        number = getattr(signal, name)
        stopped = command(name, before=functools.partial(_signals_at, 3, number))
        assert stopped == Finished(
            1,
            "",
            f"skipgpt: training stage router: got {name} at step 4 of 6; "
            "the state was saved; the same command with --resume goes on from it\n",
        )
        assert not (tmp_path / name / "skipgpt_config.json").exists()
        resumed = command(name, "--resume")
        assert resumed.status == 0, resumed.stderr
        assert weights(tmp_path / name) == weights(tmp_path / "straight")
        assert metrics(tmp_path / name) == metrics(tmp_path / "straight")
        assert not (tmp_path / name / "trainer").exists()


def test_a_killed_run_resumes_from_its_last_saved_state(
    command: Callable[..., Finished], tmp_path: Path
) -> None:
    killed = command("killed", before=functools.partial(_signals_at, 5, signal.SIGKILL))
    assert killed.status == -signal.SIGKILL
    states = tmp_path / "killed" / "trainer" / "router"
    assert sorted(p.name for p in states.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert command("killed", "--resume").status == 0
    assert command("straight").status == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")


def test_a_second_signal_stops_at_once(command: Callable[..., Finished], tmp_path: Path) -> None:
    twice = functools.partial(_signals_at, 3, signal.SIGTERM, signal.SIGTERM)
    stopped = command("out", before=twice)
    assert stopped.status == 1
    assert stopped.stdout == ""
    assert stopped.stderr.splitlines() == ["skipgpt: interrupted"]
    assert command("out", "--resume").status == 0


def test_an_interrupt_before_training_is_one_line(
    command: Callable[..., Finished],
) -> None:
    stopped = command("out", before=_interrupt_while_reading)
    assert stopped == Finished(1, "", "skipgpt: interrupted\n")
