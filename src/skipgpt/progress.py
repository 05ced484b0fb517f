"""Progress bars on standard error, silent unless that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from skipgpt.processes import is_first


def progress_bar(total: int, label: str, initial: int = 0) -> Any:
    """A bar of tqdm; of several processes, the first one shows it."""
    return tqdm(
        total=total,
        desc=label,
        initial=initial,
        file=sys.stderr,
        disable=not (sys.stderr.isatty() and is_first()),
        dynamic_ncols=True,
    )


@contextmanager
def advancing(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar as a function of what is done and what there is to do, which may change.

    Example:
        with advancing("reading the text") as advance:
            advance(3, 10)
    """
    with progress_bar(0, label) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
