"""Token ids -> text, one by one: a character may be several tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_PRINTED = {*range(33, 127), *range(161, 173), *range(174, 256)}
_LETTERS = {
    chr(byte if byte in _PRINTED else 256 + sum(n not in _PRINTED for n in range(byte))): byte
    for byte in range(256)
}
"""Bytes by the letter that byte-level tokenizers write for them."""

_LONGEST_CHARACTER = 8
"""Longer runs of tokens without a complete character count as invalid UTF-8."""


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text that each token adds to those before it."""
    reading = Pieces(tokenizer)
    pieces = [reading.add(token) for token in ids]
    if pieces:
        pieces[-1] += reading.rest()
    return pieces


class Pieces:
    """Incremental detokenizer: token ids to text, one by one.

    A token alone may decode to something else: part of a character, or a word without the space
    that its neighbour would give it.

    Args:
        tokenizer: the tokenizer that made the ids.
        before: ids before the first one, as context.

    Example:
        pieces = Pieces(tokenizer)
        text = "".join(map(pieces.add, ids)) + pieces.rest()
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._known = list(before)[-_LONGEST_CHARACTER:]  # already returned; gives context
        self._waiting: list[int] = []

    def add(self, token: int) -> str:
        """Add a token and return its text; empty while its character is incomplete."""
        self._waiting.append(token)
        unfinished = self._fresh().endswith("\N{REPLACEMENT CHARACTER}")
        if unfinished and len(self._waiting) < _LONGEST_CHARACTER:
            return ""
        return self.rest()

    def rest(self) -> str:
        """Return the text of incomplete tokens as it is."""
        text = self._fresh()
        if self._waiting:
            self._known, self._waiting = self._waiting, []
        return text

    def _fresh(self) -> str:
        if not self._waiting:
            return ""
        before = self._decoded(self._known)
        return self._decoded([*self._known, *self._waiting])[len(before) :]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def bytes_of(tokenizer: Any, token: int) -> bytes | None:
    """Return a token's bytes, even if it is part of a character; None if unknown."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if found := re.fullmatch("<0x([0-9A-F]{2})>", name):
        data = bytes.fromhex(found[1])
    else:
        data = bytes(_LETTERS.get(letter, 0) for letter in name)
        if any(letter not in _LETTERS for letter in name):
            data = b"\xff"  # valid in no text
    if data.decode(errors="replace") == text:
        return data
    return None if "\N{REPLACEMENT CHARACTER}" in text else text.encode()
