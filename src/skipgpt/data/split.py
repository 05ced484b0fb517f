"""Documents -> those to train on, and those held out, read as far as both sides need."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from skipgpt.config import DataConfig
from skipgpt.data.documents import END_OF_TEXT, SECTION, Document
from skipgpt.data.stream import AT_ONCE, encode_stream
from skipgpt.errors import DataError

logger = logging.getLogger("skipgpt")

PATIENCE = 4
"""How many times the expected text is read before a side of the split may stay too small."""

LETTERS = 8
"""Characters per token, at most, of most tokenizers."""


def split_documents(
    documents: Iterable[Document], held_out: float
) -> tuple[list[Document], list[Document]]:
    """Divide documents by the hash of their group, keeping their order.

    The side of a group depends on its name alone, so it is the same on every machine and whatever
    other documents there are. The one exception: where a side would stay empty, the group nearest
    to it moves over.

    Returns:
        Documents to train on, and about this share of groups held out.

    Raises:
        DataError: fewer than two groups.

    Example:
        >>> documents = [Document(name, "text", group=name) for name in "abcdefgh"]
        >>> train, held_out = split_documents(documents, 0.05)
        >>> [document.name for document in held_out]
        ['d']
    """
    documents = list(documents)
    places = {document.group: place_of(document.group) for document in documents}
    if len(places) < 2:
        raise DataError(
            "holding out documents",
            got="no document"
            if not documents
            else f"{len(documents)} documents of one group"
            if len(documents) > 1
            else f"only one document, {documents[0].name!r}",
            expected="two or more that differ, to train on one and measure on another",
            todo=f"give several files, a folder or JSONL rows; a lone text file needs "
            f"{END_OF_TEXT} between its documents or about {4 * SECTION // 1000},000 characters",
        )
    held = {group for group, place in places.items() if place < held_out}
    if not held:
        held = {min(places, key=places.__getitem__)}
    elif len(held) == len(places):
        held.remove(max(places, key=places.__getitem__))
    return (
        [document for document in documents if document.group not in held],
        [document for document in documents if document.group in held],
    )


def place_of(group: str) -> float:
    """A group's hash as a number between 0 and 1."""
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


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
