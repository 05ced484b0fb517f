"""The `skipgpt` command in a real process, without paying for the imports each time.

A server process makes everything `ready` once; each command is a fork of it with its own standard
streams, working directory and exit status.
"""

from __future__ import annotations

import functools
import gc
import io
import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

PATIENCE = 600
"""Seconds that a command of a `Session` may take."""
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["ready"])


def _started(process: Any) -> Any:
    """A process that was started; the first one starts the server, which has to find `ready`."""
    places = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, places))):
        forkserver.ensure_running()
    process.start()
    return process


@dataclass(frozen=True)
class Raised:
    """An error: its advice, and the modules of the package that were running when it was made."""

    todo: str
    modules: frozenset[str]


@contextmanager
def noting_where_errors_are_made() -> Iterator[None]:
    """Let each error of the package carry the modules that were running, as `made_in`."""
    from skipgpt.errors import SkipGPTError

    make = SkipGPTError.__init__

    def noting(self: Any, *arguments: Any, **facts: Any) -> None:
        make(self, *arguments, **facts)
        frames = traceback.walk_stack(sys._getframe(1))
        files = (frame.f_code.co_filename for frame, _ in frames)
        self.made_in = frozenset(
            file.rpartition("/src/skipgpt/")[2] for file in files if "/src/skipgpt/" in file
        )

    advise = SkipGPTError.advising

    def advising(self: Any, todo: str) -> Any:
        other: Any = advise(self, todo)
        other.made_in |= getattr(self, "made_in", frozenset())
        return other

    with (
        mock.patch.object(SkipGPTError, "__init__", noting),
        mock.patch.object(SkipGPTError, "advising", advising),
    ):
        yield


@dataclass(frozen=True)
class Finished:
    """How a command ended; a negative status is the signal that killed it."""

    status: int
    stdout: str
    stderr: str
    raised: Raised | None = None
    """The error that ended it, if a `Session` ran it."""


def skipgpt(
    *arguments: object,
    stdin: str = "",
    before: Callable[[], None] | None = None,
    folder: Path | None = None,
) -> Finished:
    """Run `skipgpt ARGUMENTS` to its end.

    Args:
        arguments: as typed.
        stdin: piped in.
        before: a function of a module, called in the process first.
        folder: working directory.
    """
    with started(*arguments, stdin=stdin, before=before, folder=folder) as running:
        return running.end()


def script(file: Path, *arguments: object, folder: Path | None = None) -> Finished:
    """Run `python FILE ARGUMENTS` to its end, without paying for the imports."""
    return skipgpt(*arguments, before=functools.partial(_script, file), folder=folder)


def _script(file: Path) -> None:
    sys.argv[0], sys.path[:0] = str(file), [str(file.parent)]
    runpy.run_path(str(file), run_name="__main__")
    sys.exit()


class Running:
    """A command that was started."""

    def __init__(self, process: Any, streams: str) -> None:
        self._process, self._streams = process, streams

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self._process.is_alive())

    @property
    def printed(self) -> str:
        """What it wrote to standard output so far."""
        return Path(self._streams, "out").read_text(encoding="utf-8")

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._process.kill()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def end(self, seconds: float | None = None) -> Finished:
        """Wait for its end, so long at most."""
        self._process.join(seconds)
        assert not self.alive, f"has not ended in {seconds} seconds"
        out, err = (Path(self._streams, n).read_text(encoding="utf-8") for n in ("out", "err"))
        return Finished(self._process.exitcode, out, err)


@contextmanager
def started(
    *arguments: object,
    stdin: str = "",
    before: Callable[[], None] | None = None,
    folder: Path | None = None,
) -> Iterator[Running]:
    """The same, without waiting; what still runs at the end of the block is killed."""
    argv = ["skipgpt", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as streams:
        for name in ("out", "err"):
            Path(streams, name).touch()
        arguments = (argv, streams, stdin, before, folder)
        process = _started(_server.Process(target=_command, args=arguments))
        try:
            yield Running(process, streams)
        finally:
            process.kill()
            process.join()
            process.close()


class Session:
    """Commands one after another in one process, which spares each the start of a process.

    What a command leaves behind in its process, the next one finds: for commands that leave nothing
    there.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._here, there = multiprocessing.Pipe()
        self._process = _started(_server.Process(target=_commands, args=(there,), daemon=True))
        there.close()

    def __call__(
        self,
        *arguments: object,
        folder: Path,
        stdin: str = "",
        before: Callable[[], object] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Finished:
        """Run `skipgpt ARGUMENTS` to its end in a folder; `before` may return a context manager."""
        argv = ["skipgpt", *map(str, arguments)]
        with tempfile.TemporaryDirectory() as streams:
            for name in ("out", "err"):
                Path(streams, name).touch()
            self._here.send((argv, streams, stdin, before, folder, dict(environment or {})))
            try:
                assert self._here.poll(PATIENCE), f"has not ended in {PATIENCE} seconds: {argv}"
                status, error = self._here.recv()
            except (AssertionError, OSError, EOFError):  # the next command gets another process
                self.close()
                self._start()
                raise
            out, err = (Path(streams, n).read_text(encoding="utf-8") for n in ("out", "err"))
        return Finished(status, out, err, error)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _commands(pipe: Any) -> None:
    """Run each command that comes through a pipe, and answer how it ended."""
    from skipgpt.cli.shared import options

    environment = dict(os.environ)
    with suppress(EOFError):
        while True:
            argv, streams, stdin, before, folder, more = pipe.recv()
            gc.freeze()  # what collects garbage need not look through the libraries
            os.environ.clear()
            os.environ.update(environment | more)
            error: Any = None
            with ExitStack() as stack:
                stack.enter_context(noting_where_errors_are_made())
                stack.enter_context(mock.patch.object(sys, "stderr", sys.__stderr__))
                stack.enter_context(mock.patch.object(options, "_document", None))
                entered = before() if before else None
                if hasattr(entered, "__enter__"):
                    stack.enter_context(entered)
                try:
                    _command(argv, streams, stdin, None, folder)
                    status = 0
                except SystemExit as end:
                    status, error = end.code, end.__context__
            for stream in (sys.__stdout__, sys.__stderr__):
                if stream:
                    stream.flush()
            raised = hasattr(error, "made_in") and Raised(error.todo, error.made_in)
            pipe.send((status or 0, raised or None))


def _command(
    argv: list[str],
    streams: str,
    stdin: str,
    before: Callable[[], None] | None,
    folder: Path | None,
) -> None:
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(Path(streams, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
    sys.stdin = io.StringIO(stdin)
    sys.argv = argv
    if folder:
        os.chdir(folder)
    from skipgpt.cli import main
    from skipgpt.system import progress

    progress.PATIENCE = 1e6  # on no machine are these commands so slow that they speak
    try:
        if before:
            before()
        main()
    except SystemExit:
        raise
    except BaseException:  # what an interpreter does with an exception that nobody caught
        traceback.print_exc()
        sys.exit(1)
