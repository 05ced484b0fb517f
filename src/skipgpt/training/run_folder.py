"""The folder of a run: what may be written where, what was begun, and where to resume.

run.json         how the run was started; a resumed run has to match it
metrics.jsonl    one line a log step
trainer/STAGE    resumable states of transformers' Trainer, and `done` once the stage is over
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipgpt.atomic import staged, to_json
from skipgpt.checkpoint import CONFIG, refuse_existing
from skipgpt.errors import CheckpointError, ConfigError

RUN, METRICS, RESUME = "run.json", "metrics.jsonl", "trainer"
_DONE = "done"


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Raise if a run may not write to a folder; changes nothing.

    Raises:
        CheckpointError: it holds a checkpoint or an interrupted run and nobody said what to do
            with it, or there is nothing to resume.
    """
    if resume:
        if not (out / RUN).exists():
            raise CheckpointError(
                f"resuming in {out}",
                got="no run there",
                expected=f"a folder with {RUN}",
                todo="start it without --resume",
            )
        return
    if overwrite:
        return
    refuse_existing(out)
    if (out / RESUME).exists():
        raise CheckpointError(
            f"writing to {out}",
            got="the state of an interrupted run",
            expected="an empty or new folder",
            todo="pass --resume to go on from it, or --overwrite to drop it",
        )


def begin_run(out: Path, facts: dict[str, Any]) -> None:
    """Drop what an earlier run left to resume from, and write run.json.

    An earlier checkpoint stays until the first stage of this run replaces it.
    """
    shutil.rmtree(out / RESUME, ignore_errors=True)
    (out / RESUME).mkdir(parents=True)
    (out / METRICS).unlink(missing_ok=True)
    packages = ("skipgpt", "torch", "transformers", "peft", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in packages}
    with staged(out) as stage:
        text = to_json(facts | {"versions": versions, "command": sys.argv})
        (stage / RUN).write_text(text, encoding="utf-8")


def compare_run(out: Path, facts: dict[str, Any]) -> None:
    """Raise if a run is resumed with other settings or other data.

    Raises:
        ConfigError: it is; names what differs.
        CheckpointError: run.json is damaged.
    """
    try:
        before = json.loads((out / RUN).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"resuming in {out}", got=f"a damaged {RUN} ({error})") from error
    now = json.loads(json.dumps(facts))
    if changed := [key for key in now if now[key] != before.get(key)]:
        raise ConfigError(
            f"resuming the run in {out}",
            got=f"other values than it was started with: {', '.join(changed)}",
            expected=f"what {RUN} there records",
            todo="repeat the first command and add --resume, or use --overwrite",
        )


def finish_stage(out: Path, stage: str) -> None:
    """Note that a stage is over and its checkpoint written."""
    (out / RESUME / stage / _DONE).touch()


def finished_stages(out: Path, planned: Sequence[str]) -> tuple[str, ...]:
    """The stages that a run has finished; all of them where nothing is left to resume from."""
    if (out / CONFIG).exists() and not (out / RESUME).exists():
        return tuple(planned)
    return tuple(path.parent.name for path in (out / RESUME).glob(f"*/{_DONE}"))


def latest_state(folder: Path) -> Path | None:
    """The newest complete resume state of a stage; a half-written one is passed over."""
    states = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for state in reversed(states):
        try:  # transformers writes trainer_state.json last
            json.loads((state / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return state
    return None
