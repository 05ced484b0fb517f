"""The `skipgpt` command in a real process, without paying for the imports each time.

A server process imports the libraries once; each command is a fork of it with its own standard
streams, working directory and exit status.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = [
    "pytest",
    "typer._adapters",
    "typer.testing",
    "skipgpt.cli",
    "skipgpt.comparison.compare",
    "skipgpt.convert",
    "skipgpt.export",
    "skipgpt.generation",
    "skipgpt.training.loop.arguments",
    "skipgpt.training.run",
    "skipgpt.training.loop.trainer",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.generation.utils",
]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Finished:
    """How a command ended; a negative status is the signal that killed it."""

    status: int
    stdout: str
    stderr: str


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


class Running:
    """A command that was started."""

    def __init__(self, process: Any, streams: str) -> None:
        self._process, self._streams = process, streams

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self._process.is_alive())

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._process.kill()

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
        process = _server.Process(target=_command, args=(argv, streams, stdin, before, folder))
        process.start()
        try:
            yield Running(process, streams)
        finally:
            process.kill()
            process.join()
            process.close()


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
