"""Tokens on a terminal: a colour scale of compute, and escaped control characters."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from skipgpt.system.progress import is_terminal

STEPS = ((17, 231), (19, 231), (25, 231), (31, 16), (74, 16), (117, 16), (195, 16))
"""Background and foreground of the 256-colour palette, from little compute to much.

One hue that only gets lighter, so that it reads without colour vision; as both are set, it reads
on dark and on light terminals.
"""
_RESET = "\033[0m"
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, also of bidirectional text, and halves of surrogate pairs."""


@dataclass(frozen=True)
class Scale:
    """A colour scale for shares of compute.

    Attributes:
        low: shares up to this one have the first colour; a share of 1 has the last.
    """

    low: float = 0.0

    @classmethod
    def around(cls, sparsity: float) -> Scale:
        """Make a scale for a text at this sparsity, with its mean in the middle or above.

        Tokens of one text differ little; on a scale from 0 to 1 all would look alike.
        """
        return cls(low=max(0.0, min(0.5, 1 - 2 * sparsity)))

    def paint(self, text: str, share: float | None) -> str:
        """Colour a token's text by its share, escaped; uncoloured where the share is None.

        Line breaks stay outside the colour, which would otherwise run to the edge of the terminal.
        """
        if share is None:
            return escape_controls(text)
        place = (share - self.low) / (1 - self.low) * len(STEPS)
        back, front = STEPS[max(0, min(len(STEPS) - 1, int(place)))]
        start = f"\033[38;5;{front};48;5;{back}m"
        lines = escape_controls(text).split("\n")
        return "\n".join(f"{start}{line}{_RESET}" if line else "" for line in lines)

    def legend(self) -> str:
        """Explain the colours in one line."""
        width = (1 - self.low) / len(STEPS)
        middles = (self.low + (n + 0.5) * width for n in range(len(STEPS)))
        swatch = "".join(self.paint("  ", share) for share in middles)
        least = f"{self.low:.0%} or less" if self.low else "0%"
        return f"modules run by a token: {least} {swatch} 100%"


def escape_controls(text: str) -> str:
    r"""Escape characters that control a terminal, as in `\x1b`.

    Example:
        >>> print(escape_controls("\x1b[2Ja\tb"))
        \x1b[2Ja	b
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def fit_for(stream: Any, text: str) -> str:
    """Escape control characters for a terminal; a pipe or a file gets the text unchanged."""
    return escape_controls(text) if stream.isatty() else text


def in_a_line(text: str) -> str:
    """Escape a text and show line breaks, spaces and tabs as visible marks."""
    return escape_controls(text.replace("\n", "⏎").replace(" ", "·").replace("\t", "→"))


def has_colour(stream: Any) -> bool:
    """Whether to write colours to a stream: a terminal, or anything under `FORCE_COLOR`.

    `NO_COLOR` (no-color.org) and `FORCE_COLOR=0` turn colours off; `NO_COLOR` takes precedence.
    """
    forced = os.environ.get("FORCE_COLOR", "")
    if os.environ.get("NO_COLOR") or forced == "0":
        return False
    return bool(forced) or is_terminal(stream)
