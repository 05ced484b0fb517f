"""What SIGINT and SIGTERM do to a command: it ends with an error that says what is kept.

`stoppable` surrounds a whole command; inside another one it does nothing, since the outer one knows
best how to go on. Code that must finish something first, as a training step, raises `Stop` itself.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from skipgpt.errors import StoppedError
from skipgpt.system.progress import innermost_phase

SIGNALS = (signal.SIGINT, signal.SIGTERM)

NOTHING_KEPT = "nothing was written; the same command starts again"
"""What is kept by commands that write only at the end."""

_SURROUNDED = ContextVar("surrounded", default=False)
"""Whether this thread is inside a `stoppable` block."""


class Stop(KeyboardInterrupt):
    """The process was asked to stop.

    Args:
        got: which signal, and where if that is known better than by `doing`.
        doing: what was being done; empty where only the whole command can say.
    """

    def __init__(self, got: str, doing: str = "") -> None:
        super().__init__(got)
        self.got, self.doing = got, doing


@contextmanager
def stoppable(doing: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turn SIGINT and SIGTERM inside the block into an error.

    Args:
        doing: the whole command, as a participle ("exporting out/a").
        kept: says what is kept and how to go on, once the work has stopped.

    Raises:
        StoppedError: one of the signals came.

    Example:
        with stoppable("exporting out/a", lambda: "nothing was written; start it again"):
            ...
    """
    if _SURROUNDED.get():
        yield
        return
    outermost = _SURROUNDED.set(True)
    try:
        with handling(stop_now):
            yield
    except KeyboardInterrupt as asked:
        stop = asked if isinstance(asked, Stop) else Stop("SIGINT")
        raise StoppedError(stop.doing or doing, got=stop.got, todo=kept()) from None
    finally:
        _SURROUNDED.reset(outermost)


def stop_now(number: int, frame: FrameType | None) -> None:
    """Handle a signal by raising `Stop` in whatever runs."""
    raise Stop(signal.Signals(number).name, innermost_phase())


@contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None], *signals: signal.Signals
) -> Iterator[None]:
    """Handle signals, by default SIGINT and SIGTERM, inside the block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals or SIGNALS}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, signal.SIG_DFL if was is None else was)
