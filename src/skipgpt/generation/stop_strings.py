"""Text of new tokens up to a stop string, however tokens split it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skipgpt.data.detokenize import Pieces
from skipgpt.data.encoding import have_control_tokens
from skipgpt.model.loading.generation_settings import Ends


class NewText:
    """Incremental detokenizer that leaves out special tokens and ends at a stop string.

    Where a stop string has a control token in it, it is sought in the text with control tokens.

    Args:
        tokenizer: the tokenizer that made the ids.
        before: token ids of the prompt.
        ends: token ids and strings that end the text.

    Attributes:
        length: characters so far, those after a stop string included.
        piece: characters that the newest token added.

    Example:
        text = NewText(tokenizer, prompt_ids, ends_of(model, tokenizer))
        shown = "".join(map(text.add, ids)) + text.rest()
    """

    def __init__(self, tokenizer: Any, before: Sequence[int], ends: Ends) -> None:
        self._pieces, self._stop = Pieces(tokenizer, before), StopText(ends.strings)
        self._hidden = dict.fromkeys([*tokenizer.all_special_ids, *ends.ids], "")
        if ends.strings and have_control_tokens(tokenizer, ends.strings):
            self._hidden = {token: tokenizer.decode([token]) for token in self._hidden}
        self._ends, self._is_last = ends.ids, False
        self.length, self.piece = 0, ""

    @property
    def found(self) -> bool:
        """Whether a stop string ended the text."""
        return self._stop.found

    @property
    def ended(self) -> bool:
        """Whether a stop string or the newest token ended the text."""
        return self.found or self._is_last

    def add(self, token: int) -> str:
        """Add a token and return the text that can be shown now."""
        self._is_last = token in self._ends
        if token in self._hidden:
            self._came("")
            return self._stop.add(self._hidden[token], shown=False)
        return self._stop.add(self._came(self._pieces.add(token)))

    def rest(self) -> str:
        """Return the text held back; no more follows."""
        return self._stop.add(self._came(self._pieces.rest())) + self._stop.rest()

    def _came(self, text: str) -> str:
        self.length, self.piece = self.length + len(text), text
        return text


class StopText:
    """Passes text through up to the first complete stop string, which is left out.

    Text that may begin a stop string is held back until that is decided.

    Args:
        stops: stop strings, none of them empty.

    Example:
        >>> text = StopText(["END"])
        >>> text.add("one E"), text.add("ND two"), text.found
        ('one ', '', True)
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held, self._shown = "", ""
        self.found = False

    def add(self, text: str, shown: bool = True) -> str:
        """Add text and return what can be shown now; empty once a stop string was found.

        Args:
            text: the newest text.
            shown: whether it is ever shown; if not, it only counts for stop strings.
        """
        if self.found:
            return ""
        self._held += text
        self._shown += "01"[shown] * len(text)
        ends = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if ends:
            self.found = True
            return self._release(min(ends)[1])
        return self._release(len(self._held) - self._beginning())

    def rest(self) -> str:
        """Return the text held back; no more follows."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, length: int) -> str:
        pairs = zip(self._held[:length], self._shown, strict=False)
        self._held, self._shown = self._held[length:], self._shown[length:]
        return "".join(letter for letter, shown in pairs if shown == "1")

    def _beginning(self) -> int:
        """Length of the longest end of the held text that may begin a stop string."""
        longest = max(map(len, self._stops), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
