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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PRELOADED = [
    "pytest",
    "typer._adapters",
    "typer.testing",
    "skipgpt.cli",
    "skipgpt.comparison.compare",
    "skipgpt.convert",
    "skipgpt.export",
    "skipgpt.generation",
    "skipgpt.training.arguments",
    "skipgpt.training.run",
    "skipgpt.training.trainer",
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
    with tempfile.TemporaryDirectory() as streams:
        argv = ["skipgpt", *map(str, arguments)]
        process = _server.Process(target=_command, args=(argv, streams, stdin, before, folder))
        process.start()
        process.join()
        out, err = (Path(streams, name).read_text(encoding="utf-8") for name in ("out", "err"))
        status = process.exitcode
        process.close()
        return Finished(status, out, err)


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

    try:
        if before:
            before()
        main()
    except SystemExit:
        raise
    except BaseException:  # what an interpreter does with an exception that nobody caught
        traceback.print_exc()
        sys.exit(1)
