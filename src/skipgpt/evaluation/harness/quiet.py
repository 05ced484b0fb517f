"""Silences the harness, which writes to every stream."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from skipgpt.errors import MissingExtraError


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the harness inside the block; its progress bars show on a terminal only."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(nowhere))
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(nowhere))
        try:
            yield
        finally:
            logger.setLevel(level)


def require_harness() -> None:
    """Raise unless lm-evaluation-harness is installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lm_eval", "eval", "running benchmarks") from error
