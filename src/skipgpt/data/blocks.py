"""Documents -> two sides of a split -> packed rows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skipgpt.config import DataConfig
from skipgpt.data.documents import END_OF_TEXT, SECTION, Document
from skipgpt.data.sources import read_documents
from skipgpt.errors import DataError
from skipgpt.settings import to_dict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 256

AT_ONCE = 64
"""Documents that are encoded together where a beginning is enough."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Packed rows of three sets of documents.

    Attributes:
        train: token ids [N, T].
        calibration: token ids [N', T] of held-out documents, to set thresholds on; training rows
            where the held-out text is too little to be shared.
        held_out: token ids [N'', T] of other held-out documents, to measure on.
        fingerprint: 16 hex digits that change with any token and any setting.
        documents: how many documents were trained on, and how many held out.
    """

    train: Tensor
    calibration: Tensor
    held_out: Tensor
    fingerprint: str
    documents: tuple[int, int]


def split_documents(
    documents: Iterable[Document], held_out: float
) -> tuple[list[Document], list[Document]]:
    """Divide documents by the hash of their group, keeping their order.

    The side of a group depends on its name alone, so it is the same on every machine and whatever
    other documents there are. The one exception: where a side would stay empty, the group nearest
    to it moves over.

    Args:
        documents: all of them.
        held_out: share of groups to hold out, about.

    Returns:
        Documents to train on, and documents held out.

    Raises:
        DataError: fewer than two groups.

    Example:
        >>> documents = [Document(name, "text", group=name) for name in "abcdefgh"]
        >>> train, held_out = split_documents(documents, 0.05)
        >>> [document.name for document in held_out]
        ['d']
    """
    documents = list(documents)
    places = {document.group: _place(document.group) for document in documents}
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
            f"{END_OF_TEXT} between its documents or about {3 * SECTION // 1024} KiB of text",
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


def _place(group: str) -> float:
    """Where a group lies between 0 and 1."""
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def encode_documents(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Encode documents into one stream of tokens.

    The tokenizer's BOS stands before every document; where there is none, its EOS stands after
    every document; where there is neither, documents touch. BOS is preferred because a row that is
    read from nothing then begins as a prompt does.

    Returns:
        Token ids [S], int64.

    Example:
        ids = encode_documents(stdlib_documents(), tokenizer)
    """
    before, after = [], []
    if tokenizer.bos_token_id is not None:
        before = [tokenizer.bos_token_id]
    elif tokenizer.eos_token_id is not None:
        after = [tokenizer.eos_token_id]
    parts = [torch.empty(0, dtype=torch.int64)]
    stream = iter(documents)
    while batch := [document.text for document in islice(stream, BATCH)]:
        # Documents are longer than the model's window on purpose: no word about that.
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids = [token for row in encoded["input_ids"] for token in (*before, *row, *after)]
        parts.append(torch.tensor(ids, dtype=torch.int64))
    return torch.cat(parts)


def encode_beginning(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, tokens: int
) -> tuple[Tensor, list[Document]]:
    """Encode no more documents than it takes to have more than `tokens`; 0 encodes all.

    Returns:
        Token ids [S], which may be more than `tokens`, and the documents that they are of.

    Example:
        ids, read = encode_beginning(documents, tokenizer, 4096)
    """
    stream, found = iter(documents), 0
    read: list[Document] = []
    parts = [torch.empty(0, dtype=torch.int64)]
    while (not tokens or found <= tokens) and (some := list(islice(stream, AT_ONCE))):
        parts.append(encode_documents(some, tokenizer))
        read += some
        found += len(parts[-1])
    return torch.cat(parts), read


def pack_blocks(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    doing: str = "packing the text into rows",
) -> Tensor:
    """Cut the stream of `encode_documents` into rows; a remainder shorter than a row is dropped.

    Args:
        documents: in the order they are packed.
        tokenizer: of the base model.
        block_size: tokens a row (T).
        doing: for errors.

    Returns:
        Token ids [N, T], int64, with N at least 1.

    Raises:
        DataError: too short for one row.

    Example:
        rows = pack_blocks(documents, tokenizer, block_size=256)
    """
    ids = encode_documents(documents, tokenizer)
    rows = len(ids) // block_size
    if not rows:
        raise DataError(
            doing,
            got=f"{len(ids)} tokens, which is too short",
            expected=f"{block_size} or more, the length of one row",
            todo="give more text, or fewer tokens per row (--block-size)",
        )
    return ids[: rows * block_size].view(rows, block_size)


def load_blocks(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> Blocks:
    """Read, split, encode and pack.

    Args:
        sources: as for `read_documents`.
        tokenizer: of the base model.
        config: how to cut and split.

    Raises:
        DataError: a source cannot be read, or there is too little text on one side.
        MissingExtraError: a parquet file or hub dataset without the extra `data`.

    Example:
        blocks = load_blocks(["stdlib"], tokenizer, DataConfig(block_size=128))
        blocks.train.shape  # [N, 128]
    """
    train, aside = split_documents(read_documents(sources, config), config.held_out)
    rows = pack_blocks(train, tokenizer, config.block_size, "packing the training text")
    calibration, held_out = rows, aside
    if len({document.group for document in aside}) > 1:
        first, second = split_documents(aside, config.held_out / 2)
        if len(encode_documents(first, tokenizer)) >= config.block_size:
            calibration = pack_blocks(first, tokenizer, config.block_size)
            held_out = second
    held_rows = pack_blocks(held_out, tokenizer, config.block_size, "packing the held-out text")
    digest = hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode())
    for part in (rows, calibration, held_rows):
        digest.update(f"{len(part)} rows".encode())
        digest.update(part.numpy().astype("<i8").tobytes())
    counts = (len(train), len(aside))
    return Blocks(rows, calibration, held_rows, digest.hexdigest()[:16], counts)
