"""Documents -> one stream of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipgpt.data.documents import Document
from skipgpt.data.encoding import boundaries, encode

BATCH = 256

AT_ONCE = 64
"""Documents that are encoded together where a beginning is enough."""


class Encoded(NamedTuple):
    """Documents as one stream of tokens.

    Attributes:
        ids: [S] int64.
        starts: where each document begins in it.
    """

    ids: Tensor
    starts: tuple[int, ...]

    def inside(self, places: Iterable[int]) -> int:
        """How many of these places, where rows begin, lie inside a document."""
        return len(set(places).difference(self.starts))


def encode_stream(
    documents: Iterable[Document], tokenizer: Any, *, control_tokens: bool = False
) -> Encoded:
    """Encode documents into one stream of token ids, with `boundaries` around each.

    Control tokens that are written in a document count as such only if asked for.

    Example:
        ids = encode_stream(stdlib_documents(), tokenizer).ids
    """
    return encode_beginning(documents, tokenizer, 0, control_tokens=control_tokens)[0]


def encode_beginning(
    documents: Iterable[Document], tokenizer: Any, tokens: int, *, control_tokens: bool = False
) -> tuple[Encoded, list[Document]]:
    """Encode no more documents than it takes to have more than `tokens`; 0 encodes all.

    The stream is returned with the documents in it.
    """
    before, after = boundaries(tokenizer)
    parts = [torch.empty(0, dtype=torch.int64)]
    starts: list[int] = []
    read: list[Document] = []
    stream, size, length = iter(documents), AT_ONCE if tokens else BATCH, 0
    while (not tokens or length <= tokens) and (some := list(islice(stream, size))):
        # Documents longer than the model's context are intended: no warning about them.
        encoded = encode(
            tokenizer,
            [document.text for document in some],
            control_tokens=control_tokens,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for row in encoded["input_ids"]:
            starts.append(length)
            parts.append(torch.tensor([*before, *row, *after], dtype=torch.int64))
            length += len(parts[-1])
        read += some
    return Encoded(torch.cat(parts), tuple(starts)), read
