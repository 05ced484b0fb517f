"""A folder of answers that earlier runs gave, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from skipgpt.atomic import staged
from skipgpt.errors import CheckpointError

_SQLITE = b"SQLite format 3\0"


def check_answers(folder: str | Path) -> None:
    """Raise unless answers can be kept in a folder; before the work, not after it.

    Args:
        folder: made if absent.

    Raises:
        CheckpointError: it is a file, cannot be written to, or holds answers that cannot be read.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            f"keeping answers in {folder}",
            got="a file",
            expected="a folder",
            todo="name another --use-cache",
        )
    with staged(folder):
        pass
    for path in sorted(folder.glob("answers-*.db")):
        try:
            with path.open("rb+") as file:
                head = file.read(len(_SQLITE))
        except OSError as error:
            raise CheckpointError(f"reading the answers in {path}", got=str(error)) from error
        if head not in (b"", _SQLITE):
            raise CheckpointError(
                f"reading the answers in {path}",
                got="no database",
                expected="what an earlier run wrote",
                todo="remove it, or name another --use-cache",
            )


def answering(lm: Any, folder: str | Path, key: dict[str, Any]) -> Any:
    """The harness's model with a memory of its answers.

    Args:
        lm: the model.
        folder: of the answers.
        key: everything that the answers depend on, as plain JSON types.
    """
    from lm_eval.api.model import CachingLM

    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return CachingLM(lm, str(Path(folder) / f"answers-{digest[:16]}.db"))
