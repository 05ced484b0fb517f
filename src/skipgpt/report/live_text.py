"""A text on a terminal as it is generated, coloured by compute, with the sparsity so far."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skipgpt.analysis.live import OnToken, TokenRun
from skipgpt.report.terminal import Scale, has_colour, is_terminal

_SAVE, _BACK, _WHOLE = "\0337", "\0338", "\033[r"


@contextmanager
def live_text(out: Any, status: Any, scale: Scale) -> Iterator[OnToken]:
    """Write tokens as they come; plain where the output has no colours.

    Args:
        out: gets the text.
        status: gets the running sparsity on the last line of the terminal, where both are one.
        scale: of the colours.

    Example:
        with live_text(sys.stdout, sys.stderr, Scale.around(0.25)) as tell:
            generate(model, tokenizer, "The cat", on_token=tell)
    """
    colour = has_colour(out)
    line = StatusLine(status) if colour and is_terminal(out) and is_terminal(status) else None
    ran = modules = tokens = 0

    def tell(token: TokenRun) -> None:
        nonlocal ran, modules, tokens
        out.write(scale.paint(token.text, token.compute) if colour else token.text)
        out.flush()
        cells = (*token.attn, *token.mlp)
        ran, modules, tokens = ran + sum(cells), modules + len(cells), tokens + bool(cells)
        if line and modules:
            line.write(f"{tokens:,} tokens, {1 - ran / modules:.1%} of modules skipped so far")

    if line:
        line.open()
    try:
        yield tell
    finally:
        if line:
            line.close()


class StatusLine:
    """The last line of a terminal, kept out of what scrolls above it.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def open(self) -> None:
        """Keep the line free; the cursor is at the beginning of one."""
        height = self._height()
        # The cursor may stand on the last line: a step down and up again moves it off.
        self._say(f"\n{_SAVE}\033[1;{height - 1}r{_BACK}\033[1A")

    def write(self, text: str) -> None:
        """Put this on it, whatever the terminal's size is now."""
        width = shutil.get_terminal_size().columns
        self._say(f"{_SAVE}\033[{self._height()};1H\033[2K\033[2m{text[:width]}\033[0m{_BACK}")

    def close(self) -> None:
        """Clear it and give it back."""
        self._say(f"\033[0m{_SAVE}{_WHOLE}\033[{self._height()};1H\033[2K{_BACK}")

    def _height(self) -> int:
        return max(2, shutil.get_terminal_size().lines)

    def _say(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
