"""Writing a folder of files so that a failure leaves what was there before."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from skipgpt.errors import CheckpointError, SkipGPTError


@contextmanager
def staged(
    folder: Path, last: str | None = None, instead_of: tuple[str, ...] = ()
) -> Iterator[Path]:
    """Yield a temporary folder whose files are renamed into `folder` once all are written.

    Args:
        folder: made if absent.
        last: name of the file that describes the others, so has to be the last to appear.
        instead_of: patterns of names; files of `folder` that match and are not written are removed.

    Raises:
        CheckpointError: writing failed; `folder` holds what it held before, or is not there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    except OSError as error:
        raise CheckpointError(
            f"writing to {folder}",
            got=str(error),
            expected="a folder that can be made and written to",
            todo="name another folder",
        ) from error
    written = False
    try:
        yield stage
        names = {path.name for path in files_below(stage)}
        _move_into(stage, folder, last)
        written = True
        for path in (old for pattern in instead_of for old in folder.glob(pattern)):
            if path.name not in names:
                path.unlink()
    except SkipGPTError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"writing to {folder}",
            got=f"{type(error).__name__}: {' '.join(str(error).split())}",
            expected="room on the disk and permission to write" if _is_of_the_disk(error) else "",
            todo="what was there before is untouched",
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not written:
            with suppress(OSError):  # somebody else put something there
                for path in made:
                    path.rmdir()


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed, not the making of what was to be written."""
    # safetensors and tokenizers raise classes of their own, with the words of Rust.
    return isinstance(error, OSError) or "(os error " in str(error)


def _move_into(stage: Path, folder: Path, last: str | None) -> None:
    """Rename every file of `stage` to its place in `folder`, or none of them."""
    paths = sorted(files_below(stage), key=lambda path: path.name == last)
    targets = {path: folder / path.relative_to(stage) for path in paths}
    with tempfile.TemporaryDirectory(prefix=".replaced-", dir=folder) as kept:
        before = {target: Path(kept, str(n)) for n, target in enumerate(targets.values())}
        for target, copy in before.items():
            if target.exists():
                _link_or_copy(target, copy)
        moved: list[Path] = []
        try:
            for path, target in targets.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                moved.append(target)
        except BaseException:
            for target in moved:
                if before[target].exists():
                    os.replace(before[target], target)
                else:
                    target.unlink()
            raise


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copyfile(source, target)


def to_json(value: Any) -> str:
    """Pretty JSON with a final newline; refuses NaN and infinity, which are not JSON."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def plain_json(value: Any) -> Any:
    """Return what a reader of this value's JSON gets, where NaN and infinity become None."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder, in order."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]
