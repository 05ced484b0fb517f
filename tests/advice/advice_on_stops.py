"""Commands that are stopped, locked out or short of room, and what they say to do then."""

from __future__ import annotations

import errno
import functools
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from advice_on_data import READING
from advice_on_models import LOADING
from advice_on_options import COMPARE, CONVERT, GENERATE, TASKS, TRAIN
from following import told
from made_world import world
from short_demo import short_demo

AGAIN = "nothing was written; the same command starts again"
EXPORT = LOADING["export static"].replace("MODEL", "checkpoint")
MERGE = LOADING["export merged"].replace("MODEL", "checkpoint")
BENCH = LOADING["bench"].replace("MODEL", "checkpoint") + " --out out"
REPORT = LOADING["report"].replace("MODEL", "checkpoint")
CALIBRATED = READING["convert"].replace("DATA", "good.jsonl")
STEPS = f"{TRAIN} --set router_stage.steps=4 --set save_every=2"
LOCKED = "wait until it has ended or stop it, or name another --out"


FULL = OSError(errno.ENOSPC, "No space left on device")


def stopped_in(where: str) -> Any:
    """Ask for a stop as soon as a function is called."""

    def asked(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    return mock.patch(where, asked)


def stop(where: str) -> Any:
    return functools.partial(stopped_in, where)


@contextmanager
def little_room(step: int = 0) -> Iterator[None]:
    """Let no file grow beyond 100 bytes: at all, or while a step is saved."""
    from skipgpt.training.loop.trainer import RoutingTrainer

    everything = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = RoutingTrainer._save_optimizer_and_scheduler

    def saved(self: Any, folder: str) -> None:
        if self.state.global_step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, everything[1]))
        try:
            save(self, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, everything)

    with mock.patch.object(RoutingTrainer, "_save_optimizer_and_scheduler", saved):
        yield


def full_disk(where: str) -> Any:
    """Let the disk be full where a function writes."""
    return mock.patch(where, side_effect=FULL)


def endless_loss() -> Any:
    """Let the loss of a step be infinite."""
    import torch
    from transformers import Trainer

    return mock.patch.object(Trainer, "training_step", return_value=torch.tensor(torch.inf))


@contextmanager
def broken_weights() -> Iterator[None]:
    """Let a router have a value that is no number when the second state is saved."""
    from skipgpt.training.loop.trainer import RoutingTrainer

    save = RoutingTrainer.save_model

    def saved(self: Any, *arguments: Any, **options: Any) -> None:
        if self.state.global_step == 4:
            parameter = next(p for p in self.model.parameters() if p.requires_grad)
            parameter.data.fill_(float("nan"))
        save(self, *arguments, **options)

    with mock.patch.object(RoutingTrainer, "save_model", saved):
        yield


def held_by_another(folder: str) -> Any:
    """Let another process write where a command wants to."""
    import filelock

    raised = filelock.Timeout(folder)
    return mock.patch("filelock.FileLock.acquire", side_effect=raised)


def full_output() -> Any:
    """Let standard output be a full device."""
    return mock.patch("skipgpt.cli.shared.options.print", side_effect=FULL, create=True)


def broken() -> Any:
    """Let a command meet a bug."""
    return mock.patch(
        "skipgpt.convert.into_checkpoint.load_base", side_effect=ZeroDivisionError("a bug")
    )


def demo_of_little() -> Any:
    """Let the demo take a moment."""
    return short_demo(world() / "small-nano")


def demo_at_once() -> Any:
    """Let the demo be done; its command is tried elsewhere."""
    from skipgpt.demo import DemoResult
    from skipgpt.evaluation.perplexity import Perplexity
    from skipgpt.report.charts.routing_map import RoutingMap

    rows, routes = {"dense": Perplexity.of(1.0, 8)}, RoutingMap(["a"], [[True]], [[False]])
    done = DemoResult(rows, [], {"dense": ""}, routes, 0.2, "flops", 0)
    return mock.patch("skipgpt.demo.demo", return_value=done)


def interrupted() -> Any:
    """Interrupt a command before it has begun to work."""
    # Not by a signal: a shell's background jobs ignore SIGINT.
    return mock.patch("skipgpt.cli.shared.options.begin", side_effect=KeyboardInterrupt)


def interrupted_at_once() -> Any:
    """Interrupt a command before its options are read."""
    return mock.patch("skipgpt.cli.app", side_effect=KeyboardInterrupt)


def unreadable_cache() -> Any:
    from pathlib import Path

    opened = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.suffix == ".db":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    return mock.patch.object(Path, "open", refuse)


DEMO = "demo --out out --budget flops --sparsity 0.2"
LITTLE = DEMO.replace("0.2", "0.05")
LOWER = "start again with a lower learning rate (--lr) and --overwrite"
ON_STOPS = [
    # stops
    *(
        told(module, AGAIN, line, f"skipgpt {line}", before=stop(where))
        for module, line, where in (
            ("export/checks.py", MERGE, "skipgpt.export.merged.as_auto_model"),
            ("export/checks.py", EXPORT, "skipgpt.export.static.choose"),
            ("convert/into_checkpoint.py", CONVERT,
            "skipgpt.convert.into_checkpoint.read_authors_file"),
            ("report/writing.py", REPORT, "skipgpt.report.gather.gather"),
            ("cli/bench.py", BENCH, "skipgpt.benchmark.subject.subject_of_checkpoint"),
            ("cli/profile.py", "profile", "skipgpt.benchmark.profile.profile_machine"),
        )
    ),
    told("evaluation/calibrate.py", "the checkpoint is as it was; the same command starts again",
         CALIBRATED, f"skipgpt {CALIBRATED} --overwrite",
         before=stop("skipgpt.evaluation.calibrate.calibrate")),
    told("comparison/compare.py", "what was finished is kept: the same command goes on from it",
         f"{COMPARE} --methods dense", f"skipgpt {COMPARE} --methods dense",
         before=stop("skipgpt.comparison.compare.prepare")),
    told("demo.py", "what finished is kept in …; the same command starts again", LITTLE,
         f"skipgpt {LITTLE}", before=stop("skipgpt.demo.train"), meanwhile=demo_of_little),
    told("config/budget.py", "0.25 saves a quarter of the …", f"{DEMO[:-3]}25",
         f"skipgpt {DEMO}", meanwhile=demo_at_once),
    told("config/budget.py", "flops counts what skipping really saves",
         DEMO.replace("flops", "flop"), f"skipgpt {DEMO}", meanwhile=demo_at_once),
    told("training/run.py", "nothing was written; the same command starts it again", TRAIN,
         f"skipgpt {TRAIN}", before=stop("skipgpt.training.run.load_blocks")),
    told("training/run.py", "nothing was written; the same command starts it again; what was there "
         "before is untouched",
         f"cp -rL checkpoint out && cp base/config.json out/run.json && {TRAIN} --overwrite",
         f"skipgpt {TRAIN} --overwrite", before=stop("skipgpt.training.run.load_blocks")),
    told("training/run.py", "no step is saved yet; the same command with --resume goes on from it",
         TRAIN, f"skipgpt {TRAIN} --resume",
         before=stop("skipgpt.training.measurement.perplexity")),
    told("training/run.py",
         "the state was saved at step … of stage router; the same command with --resume goes on "
         "from it", TRAIN, f"skipgpt {TRAIN} --resume",
         before=stop("skipgpt.evaluation.calibrate.calibrate_curve")),
    told("cli/__init__.py", "interrupted; the same command starts again", GENERATE,
         f"skipgpt {GENERATE}", before=interrupted),
    told("cli/__init__.py", "interrupted; the same command starts again", GENERATE,
         f"skipgpt {GENERATE}", before=interrupted_at_once),
    # room and rights
    told("training/loop/resumable.py",
         "no state is kept; make room, and the same command with --resume goes on",
         STEPS, f"skipgpt {STEPS} --resume", before=functools.partial(little_room, 2)),
    told("training/loop/resumable.py",
         "the state of step … is kept; make room, and the same command "
         "with --resume goes on", STEPS, f"skipgpt {STEPS} --resume",
         before=functools.partial(little_room, 4)),
    told("training/run_stage.py", "…; make room, and the same command with --resume goes on", STEPS,
         f"skipgpt {STEPS} --resume",
         before=functools.partial(full_disk, "skipgpt.training.loop.callbacks.MetricsFile.on_log")),
    told("training/loop/resumable.py", f"the state saved before is kept; {LOWER}", STEPS,
         f"skipgpt {STEPS} --lr 1e-5 --overwrite", before=broken_weights),
    told("training/loop/trainer.py", f"the last saved state is kept; {LOWER}", TRAIN,
         f"skipgpt {TRAIN} --lr 1e-5 --overwrite", before=endless_loss),
    told("comparison/trained.py", "what was finished is kept; give a lower learning rate (--lr)",
         f"{COMPARE} --methods router", f"skipgpt {COMPARE} --methods router --lr 1e-5",
         before=endless_loss),
    told("comparison/trained.py", "what was finished is kept: the same command goes on from it",
         f"{COMPARE} --methods router", f"skipgpt {COMPARE} --methods router",
         before=functools.partial(full_disk, "skipgpt.training.loop.callbacks.MetricsFile.on_log")),
    told("export/static.py", "nothing was written; the same command starts again",
         f"{EXPORT} --heal-steps 1", f"skipgpt {EXPORT} --heal-steps 1",
         before=functools.partial(full_disk, "skipgpt.training.loop.callbacks.MetricsFile.on_log")),
    told("export/static.py",
         "nothing was written; remove less (--keep-rate), or heal for fewer steps",
         f"{EXPORT} --heal-steps 2", f"skipgpt {EXPORT} --heal-steps 1",
         "skipgpt " + EXPORT.replace("0.9", "0.7") + " --heal-steps 2", before=endless_loss),
    told("system/atomic.py", "what was there before is untouched", MERGE, f"skipgpt {MERGE}",
         before=functools.partial(full_disk, "skipgpt.system.atomic._move_into")),
    *(
        told("system/folder_lock.py", "name another --out", f"{line.replace(out, bad)}",
             f"skipgpt {line.replace(out, 'elsewhere')}")
        for line, out in ((TRAIN.replace("--out out", "--out HERE"), "HERE"),
                          (f"{COMPARE.replace('--out out', '--out HERE')} --methods dense", "HERE"),
                          (EXPORT.replace("small", "HERE"), "HERE"), (MERGE.replace("whole",
                          "HERE"), "HERE"),
                          (CONVERT.replace("--out out", "--out HERE"), "HERE"),
                          (BENCH.replace("--out out", "--out HERE"), "HERE"))
        for bad in ("empty.txt", "empty.txt/out")
    ),
    *(
        told("system/folder_lock.py", LOCKED, line.replace("HERE", "out"),
             f"skipgpt {line.replace('HERE', 'elsewhere')}",
             f"skipgpt {line.replace('HERE', 'out')}",
             before=functools.partial(held_by_another, "out"))
        for line in (TRAIN.replace("--out out", "--out HERE"),
                     f"{COMPARE.replace('--out out', '--out HERE')} --methods dense",
                     EXPORT.replace("small", "HERE"), MERGE.replace("whole", "HERE"),
                     CONVERT.replace("--out out", "--out HERE"), BENCH.replace("--out out",
                     "--out HERE"),
                     REPORT.replace("r.json", "HERE.json").replace("-o", "--out"))
    ),
    told("cli/profile.py", "set SKIPGPT_CACHE to a folder that can be written",
         "SKIPGPT_CACHE=empty.txt/cache profile", "skipgpt SKIPGPT_CACHE=caches profile"),
    told("cli/shared/options.py", "files that the command wrote are kept", MERGE,
         "test -f whole/config.json && skipgpt show checkpoint", before=full_output),
    told("evaluation/harness/response_cache.py",
         "give its permissions back, or name another --use-cache",
         f"mkdir mine && touch mine/answers-0.db && {TASKS} --use-cache mine",
         f"skipgpt {TASKS} --use-cache mine", f"skipgpt {TASKS} --use-cache elsewhere",
         before=unreadable_cache),
]  # fmt: skip
