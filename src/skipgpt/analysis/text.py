"""The text that a trace is of: its tokens, and the rows they were read in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """Each token as the text that it adds to what stands before it.

    A token alone may decode to something else: part of a character, or a word without the space
    that its neighbour would give it.
    """

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(some, clean_up_tokenization_spaces=False))

    pieces: list[str] = []
    known = read = 0  # text of tokens before `read` is out; those from `known` on give it context
    for end in range(1, len(ids) + 1):
        before, now = decode(ids[known:read]), decode(ids[known:end])
        unfinished = now.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        if unfinished and end - read < _LONGEST_CHARACTER:
            pieces.append("")
            continue
        pieces.append(now[len(before) :])
        known, read = read, end
    return pieces
