"""Text that ends before a stop sequence, however it is cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Lets text through until one of some sequences is complete; that one is left out.

    What may be the beginning of a sequence is held back until it is known.

    Args:
        stops: sequences, none of them empty.

    Example:
        >>> text = StopText(["END"])
        >>> text.add("one E"), text.add("ND two"), text.found
        ('one ', '', True)
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What may be shown now that this has come; empty once a sequence was found."""
        if self.found:
            return ""
        self._held += text
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
        """What was held back, as nothing more comes."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _beginning(self) -> int:
        """How much of the end of what is held may become a sequence."""
        longest = max(map(len, self._stops), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
