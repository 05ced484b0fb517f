"""Documents -> those to train on, and those held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from skipgpt.data.documents import END_OF_TEXT, SECTION, Document
from skipgpt.errors import DataError


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
