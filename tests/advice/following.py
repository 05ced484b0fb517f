"""Runs what fails, looks for the advice of its error, and follows it."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from command import Finished, Session, noting_where_errors_are_made
from made_world import SETTINGS, world
from skipgpt.errors import SkipGPTError
from skipgpt.system.device_profile import typical

VALUE = "…"
PROFILED = "skipgpt.benchmark.profile.profile_machine"


class Told(NamedTuple):
    """A command that fails, the advice in its error, and what follows that advice.

    Attributes:
        module: of the source, that advises.
        advice: a part of what it says; `…` is what only a run can tell.
        fails: the arguments of `skipgpt`.
        followed: lines of a shell, each of which must succeed where it begins with `skipgpt`;
            alternatives each. `OUT` in them is a value that stood at the `…`.
        before: called in the process of the command that fails.
        meanwhile: called in the processes of the others.
    """

    module: str
    advice: str
    fails: str
    followed: tuple[str, ...]
    before: Callable[[], object] | None = None
    meanwhile: Callable[[], object] | None = None

    @property
    def name(self) -> str:
        """For pytest."""
        command = self.fails.rpartition(" && ")[2].split()[0]
        return f"{self.module.removesuffix('.py')}: {command}"


def told(
    module: str, advice: str, fails: str, *followed: str, before: Any = None, meanwhile: Any = None
) -> Told:
    """A row; a line that does not name its command is one of `skipgpt`."""
    assert followed
    return Told(module, advice, fails, followed, before, meanwhile)


@functools.cache
def session() -> Session:
    """The process that runs the commands."""
    made = Session()
    atexit.register(made.close)
    return made


_succeeded: set[tuple[str, Any]] = set()
"""Lines that succeeded already in a folder as it is before any command."""


def follow(row: Told, folder: Path) -> None:
    """Fail as a row says, and follow its advice.

    Args:
        row: of a table.
        folder: empty.
    """
    for path in world().iterdir():
        (folder / path.name).symlink_to(path)
    before = set(os.listdir(folder))
    *shell, fails = row.fails.split(" && ")
    for step in shell:
        _run_once(step, folder, row.meanwhile, known=False)
    refused = run(fails, folder, row.before)
    assert refused.status in (1, 2), (row.fails, refused.stdout, refused.stderr)
    values = _advised(refused, row)
    for line in row.followed:
        for number, value in enumerate(values, 1):
            line = line.replace(f"<{number}>", value)
        left = set(os.listdir(folder)) - before
        _run_once(line, folder, row.meanwhile, known=not left)
        for name in set(os.listdir(folder)) - before - left:
            made = folder / name
            shutil.rmtree(made) if made.is_dir() and not made.is_symlink() else made.unlink()


def _run_once(line: str, folder: Path, meanwhile: Any, known: bool) -> None:
    """Run a line of a shell; a command that succeeded on the same files is known to succeed."""
    steps = line.split(" && ")
    known = known and sum(step.startswith("skipgpt ") for step in steps) == 1
    for step in steps:
        if not step.startswith("skipgpt "):
            subprocess.run(step, shell=True, cwd=folder, check=True)
            continue
        key = (_with_contents(step, folder), meanwhile)
        if known and key in _succeeded:
            continue
        done = run(step.removeprefix("skipgpt "), folder, meanwhile)
        assert done.status == 0, (step, done.stderr)
        if known:
            _succeeded.add(key)


def _with_contents(line: str, folder: Path) -> str:
    """A command line in which the content of each file stands for its name."""
    words = shlex.split(line)
    for number, word in enumerate(words):
        path = folder / word
        if path.is_file():
            words[number] = hashlib.sha256(path.read_bytes()).hexdigest()
    return shlex.join(words)


def run(line: str, folder: Path, before: Any = None) -> Finished:
    """Run a command line; `TINY` in it stands for settings of a training of a moment."""
    words = [word for each in shlex.split(line) for word in SETTINGS.get(each, (each,))]
    environment = {"SKIPGPT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    while words and (given := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
        environment[given[1]] = given[2]
        words = words[1:]
    quickly = functools.partial(_quickly, before)
    return session()(*words, folder=folder, before=quickly, environment=environment)


@contextmanager
def _quickly(before: Any) -> Iterator[None]:
    """Measure little, and let a server that could take requests end."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("skipgpt.benchmark.timing.clock.SHORT", 0.0))
        stack.enter_context(mock.patch(PROFILED, lambda device, _: typical(device)))
        stack.enter_context(mock.patch("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5)))
        stack.enter_context(mock.patch("skipgpt.serving.serve.run_server"))
        if before:
            stack.enter_context(before())
        yield


def _advised(refused: Finished, row: Told) -> tuple[str, ...]:
    printed = " ".join(refused.stderr.split())
    if refused.raised is None:  # typer refuses an option, or the command itself prints advice
        assert row.module.startswith("cli/"), refused.stderr
        return values_in(row.advice, printed)
    assert " ".join(refused.raised.todo.split()) in printed
    assert row.module in refused.raised.modules, refused.raised.modules
    return values_in(row.advice, refused.raised.todo)


def printed(module: str, advice: str, refused: Finished) -> tuple[str, ...]:
    """Look for advice that a command prints without an error of the package."""
    assert (refused.status, refused.raised) == (1, None)
    assert module.startswith("cli/")
    return values_in(advice, refused.stderr)


def values_in(advice: str, said: str) -> tuple[str, ...]:
    """What stands in an error at each `…` of the advice that it must give."""
    parts = [re.escape(part) for part in advice.split(VALUE)]
    found = re.search("(.+?)".join(parts) + (r"(?=$|[;, ])" if parts[-1] == "" else ""), said)
    assert found, (advice, said)
    return found.groups()


class Caught:
    """The error of a block that failed as it should.

    Attributes:
        values: what stood at each `…`.
        error: itself.
    """

    values: tuple[str, ...]
    error: SkipGPTError


@contextmanager
def advised(module: str, advice: str) -> Iterator[Caught]:
    """Expect an error of this module of the source, with this advice."""
    caught = Caught()
    with pytest.raises(SkipGPTError) as raised, noting_where_errors_are_made():
        yield caught
    caught.error = raised.value
    made_in = raised.value.made_in  # type: ignore[attr-defined]
    assert module in made_in, made_in
    assert raised.value.todo in str(raised.value)
    caught.values = values_in(advice, raised.value.todo)
