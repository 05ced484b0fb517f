"""Ctrl-C, SIGTERM and SIGKILL at a real process in the middle of training."""

import functools
import importlib
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import Finished, skipgpt
from runs import ARGUMENTS, metrics, shared_checkpoint, weights, write_documents
from tiny import save_base


def _train(base: Path, out: Path, *more: str, **options: Any) -> Finished:
    """`skipgpt train` of a tiny router stage on the documents beside a base."""
    saving = ("--recipe", "paper", "--set", "save_every=2", "--json")
    arguments = ("--data", base.parent / "stories.jsonl", "--out", out, *ARGUMENTS, *saving, *more)
    return skipgpt("train", base, *arguments, **options)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it makes where nothing interrupts it."""
    folder = tmp_path_factory.mktemp("straight")
    write_documents(folder)
    finished = _train(save_base(folder / "base"), folder / "out")
    assert finished.status == 0, finished.stderr
    return folder / "out"


@pytest.fixture
def command(base_folder: Path, tmp_path: Path) -> Callable[..., Finished]:
    """The same of this test's own base, into a folder of its own."""
    write_documents(tmp_path)
    return lambda out, *more, **options: _train(base_folder, tmp_path / out, *more, **options)


def _signals_at(step: int, *numbers: int) -> None:
    """Let the process signal itself after a step, which it notices at the end of the next."""
    from skipgpt.training.loop.callbacks import MetricsFile

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
    command: Callable[..., Finished], straight: Path, tmp_path: Path
) -> None:
    for name in ("SIGINT", "SIGTERM"):
        number = getattr(signal, name)
        stopped = command(name, before=functools.partial(_signals_at, 3, number))
        assert (stopped.status, stopped.stdout) == (1, "")
        assert stopped.stderr.splitlines()[-1] == (
            f"skipgpt: training stage router: got {name} at step 4 of 6; the state was saved at "
            "step 4 of stage router; the same command with --resume goes on from it"
        )
        assert not (tmp_path / name / "skipgpt_config.json").exists()
        resumed = command(name, "--resume")
        assert resumed.status == 0, resumed.stderr
        assert weights(tmp_path / name) == weights(straight)
        assert metrics(tmp_path / name) == metrics(straight)
        assert not (tmp_path / name / "trainer").exists()


def test_a_killed_run_resumes_from_its_last_saved_state(
    command: Callable[..., Finished], straight: Path, tmp_path: Path
) -> None:
    killed = command("killed", before=functools.partial(_signals_at, 5, signal.SIGKILL))
    assert killed.status == -signal.SIGKILL
    states = tmp_path / "killed" / "trainer" / "router"
    assert sorted(p.name for p in states.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert command("killed", "--resume").status == 0
    assert weights(tmp_path / "killed") == weights(straight)


def test_a_second_signal_stops_at_once(command: Callable[..., Finished], tmp_path: Path) -> None:
    twice = functools.partial(_signals_at, 3, signal.SIGTERM, signal.SIGTERM)
    stopped = command("out", before=twice)
    assert stopped.status == 1
    assert stopped.stdout == ""
    assert stopped.stderr.splitlines()[-1] == (
        "skipgpt: stage router: got SIGTERM; the state was saved at step 2 of stage router; "
        "the same command with --resume goes on from it"
    )
    assert command("out", "--resume").status == 0


def test_an_interrupt_before_training_leaves_nothing(
    command: Callable[..., Finished], tmp_path: Path
) -> None:
    stopped = command("out", before=_interrupt_while_reading)
    assert (stopped.status, stopped.stdout) == (1, "")
    assert stopped.stderr.splitlines()[-1] == (
        f"skipgpt: training into {tmp_path / 'out'}: got SIGINT; "
        "nothing was written; the same command starts it again"
    )
    assert not (tmp_path / "out").exists()


def _terminated_in(module: str, name: str) -> None:
    """Let a function be asked to stop when it is called the first time."""

    def asked(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("goes on")

    setattr(importlib.import_module(module), name, asked)


@pytest.mark.parametrize(
    ("module", "name", "phase", "kept"),
    [
        ("skipgpt.training.measurement", "perplexity", "measuring the dense model on held-out text",
         "no step is saved yet"),
        ("skipgpt.evaluation.calibrate", "calibrate_curve", "calibrating the curve",
         "the state was saved at step 6 of stage router"),
    ],
)  # fmt: skip
def test_a_stop_between_steps_says_where_what_is_kept_and_how_to_go_on(
    module: str, name: str, phase: str, kept: str, command: Callable[..., Finished], tmp_path: Path
) -> None:
    stopped = command("out", before=functools.partial(_terminated_in, module, name))
    assert (stopped.status, stopped.stdout) == (1, "")
    assert stopped.stderr.splitlines()[-1] == (
        f"skipgpt: {phase}: got SIGTERM; {kept}; the same command with --resume goes on from it"
    )
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert command("out", "--resume").status == 0


def test_a_stopped_export_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = shared_checkpoint()
    before = functools.partial(_terminated_in, "skipgpt.export.merged", "as_auto_model")
    out = tmp_path / "merged"
    stopped = skipgpt("export", checkpoint, "--merged", "--out", out, before=before)
    assert stopped.status == 1
    assert stopped.stderr.splitlines()[-1] == (
        f"skipgpt: exporting {checkpoint}: got SIGTERM; "
        "nothing was written; the same command starts again"
    )
    assert not out.exists()


def _full_disk_at(step: int) -> None:
    """Let no file grow beyond 100 bytes while the optimiser of a step is saved."""
    from skipgpt.training.loop.trainer import RoutingTrainer

    save = RoutingTrainer._save_optimizer_and_scheduler

    def saved(self: RoutingTrainer, folder: str) -> None:
        if self.state.global_step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        try:
            save(self, folder)
        finally:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    RoutingTrainer._save_optimizer_and_scheduler = saved


def test_a_disk_that_fills_up_leaves_the_state_before(
    command: Callable[..., Finished], straight: Path, tmp_path: Path
) -> None:
    full = command("out", before=functools.partial(_full_disk_at, 4))
    states = tmp_path / "out" / "trainer" / "router"
    said = full.stderr.splitlines()[-1]
    assert (full.status, full.stdout) == (1, "")
    assert said.startswith(f"skipgpt: saving step 4 of stage router below {states}: got ")
    assert said.endswith(
        "; expected room on the disk and permission to write; the state of step 2 is kept; "
        "make room, and the same command with --resume goes on"
    )
    assert [path.name for path in states.iterdir()] == ["checkpoint-2"]
    assert command("out", "--resume").status == 0
    assert weights(tmp_path / "out") == weights(straight)


NOTHING = "nothing was written; the same command starts again"


@pytest.mark.parametrize(
    ("words", "patched", "told"),
    [
        (("compare", "none", "--data", "none", "--methods", "dense", "--out", "OUT"),
         ("skipgpt.comparison.compare", "prepare"),
         "comparing into OUT: got SIGTERM; what was finished is kept: "
         "the same command goes on from it"),
        (("bench", "none", "--out", "OUT"),
         ("skipgpt.benchmark.subject", "subject_of_checkpoint"),
         f"timing: got SIGTERM; {NOTHING}"),
        (("report", "none", "--data", "none", "-o", "OUT"),
         ("skipgpt.report.gather", "gather"),
         f"making the report: got SIGTERM; {NOTHING}"),
        (("convert", "none.pth", "--base", "none", "--out", "OUT"),
         ("skipgpt.convert.into_checkpoint", "read_authors_file"),
         f"converting none.pth: got SIGTERM; {NOTHING}"),
        (("demo", "--out", "OUT"), ("skipgpt.demo", "train"),
         "running the demo: got SIGTERM; what finished is kept in OUT; "
         "the same command starts again"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_every_command_that_writes_says_what_a_stop_leaves(
    words: tuple[str, ...], patched: tuple[str, str], told: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.html")
    before = functools.partial(_terminated_in, *patched)
    stopped = skipgpt(*(out if word == "OUT" else word for word in words), before=before)
    assert (stopped.status, stopped.stdout) == (1, "")
    assert stopped.stderr.splitlines()[-1] == "skipgpt: " + told.replace("OUT", out)
    assert list(tmp_path.iterdir()) == []
