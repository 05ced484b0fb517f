"""The text of a trace: its tokens, and the rows they were read in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipgpt.data.detokenize import token_texts


@dataclass(frozen=True, eq=False)
class Text:
    """A text of N tokens.

    Attributes:
        pieces: text of each token; concatenated they are the text. A character of several tokens
            belongs to the one that completes it, and the others are empty.
        ids: [N] token ids.
        row: [N] the number of the row that each was read in.
        position: [N] position in that row, from 0.
    """

    pieces: tuple[str, ...]
    ids: Tensor
    row: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.pieces)


def text_of(rows: Sequence[Tensor] | Tensor, tokenizer: Any) -> Text:
    """Return the text of rows of token ids, [N, T] or of different lengths, read one by one.

    Example:
        text = text_of(rows_of(ids, 256), tokenizer)
    """
    rows = list(rows)
    ids = torch.cat(rows).cpu()
    number = torch.cat([torch.full((len(row),), n) for n, row in enumerate(rows)])
    position = torch.cat([torch.arange(len(row)) for row in rows])
    return Text(tuple(token_texts(ids.tolist(), tokenizer)), ids, number, position)
