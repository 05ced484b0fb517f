"""The harness's index of its task files, built once: of thousands, those that our suites name.

All of them take ten seconds, so they are read in the long suite alone.
"""

from __future__ import annotations

import atexit
import functools
import pickle
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm_eval import tasks
from lm_eval.tasks._index import TaskIndex

from tiny import LONG

_PACKAGED = Path(tasks.__file__).parent
_OF_SUITES = ("arc", "super_glue", "hellaswag", "openbookqa", "piqa", "winogrande")
_READ = [_PACKAGED] if LONG else [_PACKAGED / name for name in _OF_SUITES]
_build = TaskIndex.build


@functools.cache
def index_file() -> Path:
    """A file that holds it, for processes that were forked."""
    folder = Path(tempfile.mkdtemp(prefix="skipgpt-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "index").write_bytes(pickle.dumps(_build(_READ)))
    return folder / "index"


def read_from(file: Path) -> Any:
    """Read the harness's own index where it would build it; that of other folders comes on top."""

    def build(paths: Iterable[Path], **how: Any) -> dict[str, Any]:
        folders = list(paths)
        known = pickle.loads(file.read_bytes()) if _PACKAGED in folders else {}
        return known | _build([path for path in folders if path != _PACKAGED], **how)

    return staticmethod(build)


def know_the_index(file: Path) -> None:
    """Let this process read it, for its life."""
    TaskIndex.build = read_from(file)
