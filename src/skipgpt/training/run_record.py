"""The folder of a run: whether it may be written to, the run's record, and its resume states.

run.json             how the run was started, which a resumed run has to match, and what is finished
metrics.jsonl        one line per log step
tensorboard/STAGE    event files, if the run reports to TensorBoard
trainer/STAGE        resumable states of transformers' Trainer

If several processes train, each calls every function here, and only the first reads and writes.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skipgpt.checkpoint.folder import refuse_existing
from skipgpt.config import TrainConfig
from skipgpt.config.settings import from_dict, to_dict
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.evaluation.perplexity import Perplexity
from skipgpt.model.loading.identity import digest_of_settings, refuse_other_settings
from skipgpt.system.atomic import staged, to_json
from skipgpt.system.distributed import first_alone

RUN, METRICS, RESUME, EVENTS = "run.json", "metrics.jsonl", "trainer", "tensorboard"
STATE = "trainer_state.json"
"""What transformers writes last into a state."""
_LATER = ("base_weights", "base_settings")


@first_alone
def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Raise if a run may not write to a folder; changes nothing.

    Raises:
        CheckpointError: it holds a checkpoint or an interrupted run and neither `resume` nor
            `overwrite` is set, or there is nothing to resume.
        ConfigError: both are set.
    """
    if resume and overwrite:
        raise ConfigError(
            f"writing to {out}",
            got="both --resume and --overwrite",
            expected="one: to go on from the run there, or to drop it",
            todo="leave one out (resume=, overwrite=)",
        )
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
    if (out / RESUME).exists():
        raise CheckpointError(
            f"writing to {out}",
            got="the state of an interrupted run",
            expected="an empty or new folder",
            todo="pass --resume to go on from it, or --overwrite to drop it",
        )
    refuse_existing(out)


@first_alone
def begin_run(out: Path, facts: dict[str, Any], *used: str) -> None:
    """Delete the logs and resume states of an earlier run, and write run.json.

    An earlier checkpoint stays until the first stage of this run replaces it. The versions of
    optional packages that are `used` are noted, too.
    """
    for folder in (RESUME, EVENTS):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / METRICS).unlink(missing_ok=True)
    packages = ("skipgpt", "torch", "transformers", "peft", "accelerate", *used)
    versions = {name: importlib.metadata.version(name) for name in packages}
    with staged(out) as stage:
        text = to_json(facts | {"versions": versions, "command": sys.argv})
        (stage / RUN).write_text(text, encoding="utf-8")


@first_alone
def compare_run(out: Path, facts: dict[str, Any]) -> None:
    """Raise ConfigError if a run is resumed with other settings or data, and name what differs.

    Raises CheckpointError if the base's own settings differ or run.json is damaged.
    """
    before = _read_run(out)
    now = json.loads(json.dumps(facts))
    undo = "undo the change, or use --overwrite in place of --resume to start anew"
    settings, here = before.get("base_settings"), now.get("base_settings")
    same = all(before.get(key, now.get(key)) == now.get(key) for key in ("base", "base_weights"))
    if "base_settings" in now and isinstance(settings, str):  # the digest of an older version
        now["base_settings"] = digest_of_settings(here)
    elif here and settings and same:
        before["base_settings"] = here
        try:
            refuse_other_settings(settings, here, f"resuming the run in {out}")
        except CheckpointError as error:
            raise error.advising(undo) from error
    if "config" in before:  # as an older version wrote it, without settings that came later
        before |= {"config": _as_now(before["config"], now.get("config"))}
    later = {key: now[key] for key in _LATER if key in now}  # an older version wrote none
    if changed := [key for key in now if now[key] != (later | before).get(key)]:
        of_files = {"base_weights", "base_settings", "data_fingerprint", "documents"}
        raise ConfigError(
            f"resuming the run in {out}",
            got=f"other values than it was started with: {', '.join(changed)}",
            expected=f"what {RUN} there records",
            todo=undo
            if of_files.issuperset(changed)
            else "repeat the first command and add --resume, or use --overwrite in its place",
        )


def _as_now(config: dict[str, Any], now: dict[str, Any] | None) -> dict[str, Any]:
    """A recorded config with settings that came later.

    Without LoRA its targets change nothing: older versions recorded Llama's for every family.
    """
    before = from_dict(TrainConfig, config)
    plain = to_dict(before)
    if now and not {"lora", "joint"} & set(before.stages):
        plain["lora_stage"]["targets"] = now["lora_stage"]["targets"]
    return plain


@first_alone
def note_measured(out: Path, what: str, measured: Perplexity) -> None:
    """Note in run.json what the `dense` model, or a stage that is over now, measured."""
    run = _read_run(out)
    facts: dict[str, Any] = {"held_out": run.get("held_out", {}) | {what: measured.to_dict()}}
    if what != "dense":
        facts["finished"] = [*run.get("finished", []), what]
    note(out, facts)


@first_alone
def held_out_of(out: Path) -> dict[str, Perplexity]:
    """Return what the dense model and finished stages measured on held-out text."""
    noted = _read_run(out).get("held_out", {})
    return {
        stage: from_dict(Perplexity, each, f"reading {out / RUN}") for stage, each in noted.items()
    }


@first_alone
def finished_stages(out: Path) -> tuple[str, ...]:
    """Return the stages that a run has finished."""
    return tuple(_read_run(out).get("finished", []))


def _run_in(out: Path) -> bytes | None:
    path = out / RUN
    return path.read_bytes() if path.is_file() else None


def note(out: Path, facts: dict[str, Any]) -> None:
    """Note facts in run.json; called in one process, of several in the first alone."""
    with staged(out) as folder:
        (folder / RUN).write_text(to_json(_read_run(out) | facts), encoding="utf-8")


def _read_run(out: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads((out / RUN).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"resuming in {out}",
            got=f"a damaged {RUN} ({error})",
            expected="the file as the run wrote it",
            todo="start again with --overwrite",
        ) from error
    return run


def what_a_stop_leaves(out: Path, resumed: bool) -> Callable[[], str]:
    """Return a function that says what a stopped run has kept, and how to continue.

    The folder is read once before the run begins. Each process reads it itself: another one may
    have ended.
    """
    before = _run_in(out)

    def told() -> str:
        now = _run_in(out)
        if now is None or (now == before and not resumed):
            there = "" if before is None else "; what was there before is untouched"
            return f"nothing was written; the same command starts it again{there}"
        finished = ", ".join(json.loads(now).get("finished", []))
        states = [state for each in (out / RESUME).glob("*") if (state := newest_state(each))]
        last = max(states, key=lambda state: (state / STATE).stat().st_mtime_ns, default=None)
        kept = f"what finished ({finished}) is kept" if finished else ""
        kept += " and " if finished and last else ""
        if last is not None:
            kept += f"the state was saved at step {step_of(last)} of stage {last.parent.name}"
        return f"{kept or 'no step is saved yet'}; the same command with --resume goes on from it"

    return told


def after_room_is_made(states: Path) -> str:
    """Explain which state of a stage survives a full disk, and how to continue.

    Each process reads the folder itself.
    """
    before = newest_state(states)
    kept = f"the state of step {step_of(before)} is kept" if before else "no state is kept"
    return f"{kept}; make room, and the same command with --resume goes on"


def newest_state(folder: Path) -> Path | None:
    """Return the newest complete resume state of a stage, ignoring half-written ones."""
    states = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for state in reversed(states):
        try:
            json.loads((state / STATE).read_text())
        except (OSError, ValueError):
            continue
        return state
    return None


def step_of(state: Path) -> int:
    """Return how many steps were done when a resume state was saved."""
    return int(json.loads((state / STATE).read_text())["global_step"])


latest_state = first_alone(newest_state)
"""`newest_state`, read by the first process for all; a collective call."""

steps_done = first_alone(step_of)
"""`step_of`, read by the first process for all; a collective call."""


@first_alone
def forget_states(out: Path) -> None:
    """Delete the resume states of a finished run."""
    shutil.rmtree(out / RESUME, ignore_errors=True)
