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
    with ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(nowhere))
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(nowhere))
        yield


def require_harness() -> None:
    """Raise a MissingExtraError unless lm-evaluation-harness is installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lm_eval", "eval", "running benchmarks") from error
