"""The text that a trace is of: its tokens, and the rows they were read in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PRINTED = {*range(33, 127), *range(161, 173), *range(174, 256)}
_LETTERS = {
    chr(byte if byte in _PRINTED else 256 + sum(n not in _PRINTED for n in range(byte))): byte
    for byte in range(256)
}
"""The letter that byte-level tokenizers write for each byte."""

_LONGEST_CHARACTER = 8
"""More tokens than this for one character are taken for bytes that make none."""


@dataclass(frozen=True, eq=False)
class Text:
    """N tokens.

    Attributes:
        pieces: each token as text; together they are the text. A character of several tokens
            stands at the one that completes it, and the others are empty.
        ids: [N] token ids.
        row: [N] the number of the row that each was read in.
        position: [N] its place in that row, from 0.
    """

    pieces: tuple[str, ...]
    ids: Tensor
    row: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.pieces)


def text_of(rows: Sequence[Tensor] | Tensor, tokenizer: Any) -> Text:
    """The text of rows of token ids that were read one by one.

    Args:
        rows: [N, T], or rows that may differ in length.
        tokenizer: that made them.

    Example:
        text = text_of(rows_of(ids, 256), tokenizer)
    """
    rows = list(rows)
    ids = torch.cat(rows).cpu()
    number = torch.cat([torch.full((len(row),), n) for n, row in enumerate(rows)])
    position = torch.cat([torch.arange(len(row)) for row in rows])
    return Text(tuple(pieces_of(ids.tolist(), tokenizer)), ids, number, position)


def pieces_of(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Each token as the text that it adds to what stands before it."""
    reading = Pieces(tokenizer)
    pieces = [reading.add(token) for token in ids]
    if pieces:
        pieces[-1] += reading.rest()
    return pieces


class Pieces:
    """Token ids to text one by one, as they come.

    A token alone may decode to something else: part of a character, or a word without the space
    that its neighbour would give it.

    Args:
        tokenizer: that made the ids.
        before: ids that stand before the first one.

    Example:
        pieces = Pieces(tokenizer)
        text = "".join(map(pieces.add, ids)) + pieces.rest()
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._known = list(before)[-_LONGEST_CHARACTER:]  # whose text is out; it gives context
        self._waiting: list[int] = []

    def add(self, token: int) -> str:
        """What this token adds; empty while it is part of a character that is not complete."""
        self._waiting.append(token)
        unfinished = self._fresh().endswith("\N{REPLACEMENT CHARACTER}")
        if unfinished and len(self._waiting) < _LONGEST_CHARACTER:
            return ""
        return self.rest()

    def rest(self) -> str:
        """What is waiting to be completed, as it is."""
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
    """The bytes that a token stands for, also where it is part of a character; None if unknown."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if found := re.fullmatch("<0x([0-9A-F]{2})>", name):
        data = bytes.fromhex(found[1])
    else:
        data = bytes(_LETTERS.get(letter, 0) for letter in name)
        if any(letter not in _LETTERS for letter in name):
            data = b"\xff"  # of no text
    if data.decode(errors="replace") == text:
        return data
    return None if "\N{REPLACEMENT CHARACTER}" in text else text.encode()
