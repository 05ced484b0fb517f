"""Print text on a terminal as it is generated, coloured by compute, with running sparsity."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unicodedata import combining, east_asian_width

from skipgpt.generation.live import OnToken, TokenRun
from skipgpt.report.terminal import Scale, escape_controls, fit_for, has_colour
from skipgpt.system.progress import is_terminal

_SAVE, _BACK, _WHOLE = "\0337", "\0338", "\033[r"


@contextmanager
def live_text(out: Any, status: Any, scale: Scale) -> Iterator[OnToken]:
    """Yield a callback that prints tokens as they come, coloured where the output has colours.

    The running sparsity is on the last line of `status`, where both streams are terminals.

    Example:
        with live_text(sys.stdout, sys.stderr, Scale.around(0.25)) as tell:
            generate(model, tokenizer, "The cat", on_token=tell)
    """
    colour = has_colour(out)
    line = StatusLine(status) if colour and is_terminal(out) and is_terminal(status) else None
    ran = modules = tokens = column = 0

    def tell(token: TokenRun) -> None:
        nonlocal ran, modules, tokens, column
        out.write(scale.paint(token.text, token.compute) if colour else fit_for(out, token.text))
        out.flush()
        cells = (*token.attn, *token.mlp)
        ran, modules, tokens = ran + sum(cells), modules + len(cells), tokens + bool(cells)
        width = shutil.get_terminal_size().columns
        column = column_after(column, escape_controls(token.text), width)
        # At the right edge some terminals lose the pending wrap when the cursor is restored.
        if line and modules and column < width:
            read = f"{tokens:,} token{'s' * (tokens != 1)}"
            line.write(f"{read}, {1 - ran / modules:.1%} of modules skipped so far")

    if line:
        line.open()
    try:
        yield tell
    except BaseException:
        if line:
            out.write("\n")
            out.flush()
        raise
    finally:
        if line:
            line.close()


def column_after(column: int, text: str, width: int) -> int:
    r"""Return the cursor's column, from 0, after a text without control characters.

    It is the width of the terminal where the next letter wraps.

    Example:
        >>> column_after(6, "abcd", 8), column_after(6, "ab", 8), column_after(6, "a\nb", 8)
        (2, 8, 1)
    """
    for letter in text:
        if letter == "\n":
            column = 0
        elif letter == "\t":
            column = min(width - 1, column // 8 * 8 + 8)
        else:
            wide = 0 if combining(letter) else 1 + (east_asian_width(letter) in "WF")
            column = wide if column + wide > width else column + wide
    return column


class StatusLine:
    """A status line: the last line of a terminal, excluded from scrolling."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def open(self) -> None:
        """Reserve the line; the cursor must be at the start of a line."""
        height = self._height()
        # A progress bar may have left something on this line. The cursor may stand on the last
        # line of the terminal: a step down and up again moves it off.
        self._say(f"\r\033[K\n\033[1A{_SAVE}\033[1;{height - 1}r{_BACK}")

    def write(self, text: str) -> None:
        """Write text on the line, at the terminal's current size."""
        width = shutil.get_terminal_size().columns
        self._say(f"{_SAVE}\033[{self._height()};1H\033[2K\033[2m{text[:width]}\033[0m{_BACK}")

    def close(self) -> None:
        """Clear the line and release it."""
        self._say(f"\033[0m{_SAVE}{_WHOLE}\033[{self._height()};1H\033[2K{_BACK}")

    def _height(self) -> int:
        return max(2, shutil.get_terminal_size().lines)

    def _say(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
