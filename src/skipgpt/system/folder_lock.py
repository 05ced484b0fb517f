"""One writer per folder: a lock that a process holds as long as it works there.

The operating system holds the lock, so it ends with the process, however that ends; the file
alone, left by a process that was killed, locks nothing.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from skipgpt.errors import CheckpointError
from skipgpt.system.distributed import by_first

logger = logging.getLogger("skipgpt")

LOCK = ".skipgpt.lock"
"""The lock file of a folder that is being written to."""
ELSEWHERE = "name another --out"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of cluster file systems that are mounted without locks."""


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Keep other processes and other threads from writing to a folder; a collective call.

    Inside the block the same thread may take the lock again. A folder that is made for it and stays
    empty is removed.

    Args:
        folder: made if absent.

    Raises:
        CheckpointError: another run writes there, it is a file, or it cannot be written to.

    Example:
        with writing_to(Path("out/nano-25")):
            ...
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            f"writing to {folder}", got="a file", expected="a folder", todo=ELSEWHERE
        )
    with _held(folder / LOCK, folder, ELSEWHERE):
        yield


@contextmanager
def writing_file(file: Path, todo: str = ELSEWHERE) -> Iterator[None]:
    """Lock one file as `writing_to` locks a folder; other files beside it stay writable.

    Args:
        file: its folder is made if absent.
        todo: what to do where it cannot be written.
    """
    with _held(file.parent / f".{file.name}{LOCK}", file, todo):
        yield


@contextmanager
def _held(path: Path, target: Path, todo: str) -> Iterator[None]:
    path = Path(os.path.realpath(path.parent), path.name)
    made = [each for each in path.parents if not each.exists()]
    # As a singleton it is one lock per path, and each thread of a process counts for itself.
    lock = FileLock(path, is_singleton=True)
    try:
        by_first(lambda: _acquire(lock, path, target, todo))
        try:
            yield
        finally:  # each process by itself: others may have ended
            _release(lock, path)
    finally:
        for folder in made:
            with suppress(OSError):  # something was written there
                folder.rmdir()


def _acquire(lock: BaseFileLock, path: Path, target: Path, todo: str) -> None:
    doing = f"writing to {target}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # raises if it cannot be made, which the lock would report as held
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(
            doing,
            got=f"another run that is writing there{_holder(path)}",
            expected="no other run",
            todo=f"wait until it has ended or stop it, or {todo}",
        ) from error
    except OSError as error:
        if error.errno in NO_LOCKS:
            logger.warning("%s: its file system has no locks; let no other run write there", target)
            path.unlink(missing_ok=True)
            return
        raise CheckpointError(
            doing, got=str(error), expected="a folder that can be written to", todo=todo
        ) from error
    if lock.lock_counter == 1 and not isinstance(lock, SoftFileLock):  # which writes its own
        began = datetime.datetime.now().isoformat(sep=" ", timespec="minutes")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "began": began}
        with suppress(OSError):
            path.write_text(json.dumps(holder), encoding="utf-8")


def _release(lock: BaseFileLock, path: Path) -> None:
    if not lock.is_locked:
        return
    if lock.lock_counter == 1:
        # A process that waits for the removed file notices that it is gone and takes a new one.
        with suppress(OSError):
            path.unlink()
    lock.release()


def _holder(path: Path) -> str:
    """Describe the process that holds a lock; empty if its file cannot be read."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {facts['pid']} on {facts['host']}, since {facts['began']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
