"""Progress on standard error: bars on a terminal, else one line at most every 30 seconds.

Every loop that may take long opens a phase with `advancing`. Phases nest: a line names all open
ones, the outermost first. Where standard error is no terminal (a file, CI, a container, a
notebook), work of less than `PATIENCE` seconds prints nothing; then each announced phase prints a
line when it begins, and the open phases are printed every `EVERY` seconds, also within one step.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from tqdm import tqdm

from skipgpt.system.distributed import is_first

OnStep = Callable[[int, int], None]
"""Called with steps done and steps in all."""

PATIENCE = 10.0
"""Seconds of work before anything is printed."""
EVERY = 30.0
"""Seconds between two lines of a phase."""


class Phase:
    """One piece of work in progress; call it with the amount done and the total.

    Args:
        label: what is being done, as a participle ("reading the text"); empty groups phases.
        unit: what is counted ("step"); without one only the numbers are printed.
        done: amount done before this phase began, left out of its speed.
        total: amount to do; 0 where it is unknown.
        bar: of tqdm, where there is a terminal.
    """

    def __init__(
        self, label: str, unit: str = "", done: int = 0, total: int = 0, bar: Any = None
    ) -> None:
        self.label, self.bar, self._unit = label, bar, unit
        self._began = time.monotonic()
        self._first, self._done, self._total = done, done, total
        self.told = ""

    def __call__(self, done: int, total: int = 0) -> None:
        """Report the amount done; the total may change."""
        self._done, self._total = done, total
        if self.bar is not None:
            self.bar.total, self.bar.bar_format = total or None, None
            self.bar.update(done - self.bar.n)

    def tell(self, text: str) -> None:
        """Set the text beside the numbers."""
        self.told = text
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)

    def line(self, *, timed: bool = True) -> str:
        """Describe this phase in one line; `timed` adds the time it has taken or will take."""
        spent = time.monotonic() - self._began
        numbers = f"{self._done:,}" + (f" of {self._total:,}" if self._total else "")
        said = [f"{self._unit} {numbers}".strip()] if self._total or self._done else []
        said += [self.told] if self.told else []
        if timed and self._first < self._done < self._total:
            rest = spent / (self._done - self._first) * (self._total - self._done)
            said.append(f"about {duration(rest)} left")
        elif timed and spent >= 1:
            is_over = 0 < self._total <= self._done
            said.append(f"in {duration(spent)}" if is_over else f"{duration(spent)} so far")
        return f"{self.label}: {', '.join(said)}" if said else self.label


class _Open:
    """The open phases of this process, and the thread that prints them without a terminal."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self._began = self._said = 0.0
        self._closing = threading.Event()
        self._stream: Any = None

    def enter(self, phase: Phase, announced: bool) -> None:
        """Open a phase inside the open ones."""
        first = not self.phases
        self.phases.append(phase)
        if first:
            self._began, self._said = time.monotonic(), 0.0
            self._stream, self._closing = sys.stderr, threading.Event()
            if not is_terminal(sys.stderr):
                threading.Thread(target=self._beat, args=(self._closing,), daemon=True).start()
        if announced:
            self.say()

    def leave(self, phase: Phase) -> None:
        """Close a phase; the last one stops the thread."""
        self.phases.remove(phase)
        if not self.phases:
            self._closing.set()

    def say(self) -> None:
        """Write one line, unless the work has only just begun or a bar shows it."""
        named = [phase for phase in self.phases if phase.label]
        if not named or named[-1].bar is not None or time.monotonic() - self._began < PATIENCE:
            return
        *whole, part = named
        self._said = time.monotonic()
        with suppress(OSError, ValueError):  # standard error may be closed by now
            text = " | ".join([*(each.line(timed=False) for each in whole), part.line()])
            print(text, file=self._stream, flush=True)

    def _beat(self, closing: threading.Event) -> None:
        while True:
            due = self._said + EVERY if self._said else self._began + PATIENCE
            wait = due - time.monotonic()
            if wait <= 0:
                self.say()
            if closing.wait(max(wait, 0.2)):
                return


_OPEN = _Open()


@contextmanager
def advancing(
    label: str = "", *, unit: str = "", done: int = 0, total: int = 0, announced: bool = False
) -> Iterator[Phase]:
    """Report a phase of work on standard error while the block runs.

    Of several processes, only the first one prints.

    Args:
        label: what is being done; empty for a group of phases that are printed one by one.
        unit: what is counted.
        done: amount done before this phase began.
        total: amount to do, if that is known at once.
        announced: also print when it begins, and its result when it ends.

    Example:
        with advancing("reading the text") as advance:
            advance(3, 10)
    """
    if not is_first():
        yield Phase(label, unit)
        return
    with _bar(label, done, total, announced) as bar:
        phase = Phase(label, unit, done, total, bar)
        _OPEN.enter(phase, announced)
        try:
            yield phase
            if announced and phase.told:
                _OPEN.say()
        finally:
            _OPEN.leave(phase)


def _bar(label: str, done: int, total: int, announced: bool) -> AbstractContextManager[Any]:
    if not label or not is_terminal(sys.stderr):
        return nullcontext()
    bar: AbstractContextManager[Any] = tqdm(
        total=total or None,
        initial=done,
        desc=label,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=announced,
        delay=0 if announced else 1,
        bar_format=None if total else "{desc} [{elapsed}]{postfix}",
    )
    return bar


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that knows colours and cursor movements."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def innermost_phase() -> str:
    """The label of the innermost open phase; empty if none is open."""
    return next((phase.label for phase in reversed(_OPEN.phases) if phase.label), "")


def duration(seconds: float) -> str:
    """Format seconds for people.

    Example:
        >>> duration(45), duration(600), duration(9000)
        ('45 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
