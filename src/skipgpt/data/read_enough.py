"""Reads documents as far as both sides of the split need."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from skipgpt.config import DataConfig
from skipgpt.data.documents import Document
from skipgpt.data.split import place_of
from skipgpt.data.stream import AT_ONCE, encode_stream

logger = logging.getLogger("skipgpt")

PATIENCE = 4
"""How many times the expected text is read before a side of the split may stay too small."""

LETTERS = 8
"""Characters per token, at most, of most tokenizers."""


def read_enough(
    documents: Iterable[Document], tokenizer: Any, config: DataConfig, train_tokens: int
) -> list[Document]:
    """Read documents until training, calibration and evaluation have the tokens they need.

    The side of a document is that of `split_documents`. A side that has enough takes no more, so
    what is held out does not depend on how much is trained. Reading ends at the end of the
    documents, too, or where a side stays too small for too long. The order stays. All are read
    where none is streamed.
    """
    stream = iter(documents)
    ahead = _until_streamed(stream)
    if not ahead or not ahead[-1].streamed:
        return ahead
    stream = chain(ahead, stream)
    share = config.held_out
    needs = [
        max(config.block_size, tokens)
        for tokens in (config.calibration_tokens, config.evaluation_tokens, train_tokens)
    ]
    shares = [share / 2, share / 2, 1 - share]
    expected = max(need / part for need, part in zip(needs, shares, strict=True))
    most = PATIENCE * LETTERS * expected
    have, read, letters = [0, 0, 0], 0, 0
    kept: list[Document] = []

    def side_of(document: Document) -> int:
        place = place_of(document.group)
        return 0 if place < share / 2 else 1 if place < share else 2

    def lacks(document: Document) -> bool:
        side = side_of(document)
        return have[side] < needs[side]

    while any(a < b for a, b in zip(have, needs, strict=True)) and letters <= most:
        some = list(islice(stream, AT_ONCE))
        if not some:
            break
        read += len(some)
        letters += sum(len(document.text) for document in some)
        some = [document for document in some if lacks(document)]
        encoded = encode_stream(some, tokenizer, control_tokens=config.control_tokens)
        ends = [*encoded.starts, len(encoded.ids)][1:]
        for document, start, end in zip(some, encoded.starts, ends, strict=True):
            if lacks(document):
                have[side_of(document)] += end - start
                kept.append(document)
    logger.info(
        "read %s documents: %s tokens to train on, %s to calibrate on, %s to measure on",
        f"{read:,}", f"{have[2]:,}", f"{have[0]:,}", f"{have[1]:,}",
    )  # fmt: skip
    return kept


def _until_streamed(stream: Iterator[Document]) -> list[Document]:
    """The documents up to the first one that is streamed; all if none is."""
    read = []
    for document in stream:
        read.append(document)
        if document.streamed:
            break
    return read
