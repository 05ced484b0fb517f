"""Documents -> two sides of a split -> packed rows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skipgpt.config import DataConfig
from skipgpt.config.settings import to_dict
from skipgpt.data.documents import Document
from skipgpt.data.sources import read_documents
from skipgpt.data.split import read_enough, split_documents
from skipgpt.data.stream import Encoded, encode_stream
from skipgpt.errors import DataError
from skipgpt.system.progress import advancing


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
        inside: how many training rows begin inside a document.
    """

    train: Tensor
    calibration: Tensor
    held_out: Tensor
    fingerprint: str
    documents: tuple[int, int]
    inside: int = 0


def pack_blocks(
    documents: Iterable[Document],
    tokenizer: Any,
    config: DataConfig,
    doing: str = "packing the text into rows",
) -> tuple[Tensor, int]:
    """Cut the stream of `encode_stream` into rows; a remainder shorter than a row is dropped.

    Returns:
        Token ids [N, T], int64, with N at least 1, and how many rows begin inside a document.

    Raises:
        DataError: too short for one row; says what was being done.
    """
    encoded = encode_stream(documents, tokenizer, control_tokens=config.control_tokens)
    return _rows(encoded, config.block_size, doing)


def _rows(encoded: Encoded, size: int, doing: str) -> tuple[Tensor, int]:
    ids, rows = encoded.ids, len(encoded.ids) // size
    if not rows:
        raise DataError(
            doing,
            got=f"{len(ids)} tokens, which is too short",
            expected=f"{size} or more, the length of one row",
            todo="give more text, or fewer tokens per row (--block-size)",
        )
    return ids[: rows * size].view(rows, size), encoded.inside(range(0, rows * size, size))


@advancing("reading the text and cutting it into rows", announced=True)
def load_blocks(
    sources: Sequence[str], tokenizer: Any, config: DataConfig, *, train_tokens: int | None = None
) -> Blocks:
    """Read, split, encode and pack.

    Files and plain text through a pipe are read whole. A hub dataset or JSON lines through a pipe,
    which may not end, are read as far as `train_tokens`, the calibration and the evaluation need;
    to their end if that is None.

    Raises:
        DataError: a source cannot be read, or there is too little text on one side.
        MissingExtraError: a parquet file or hub dataset without the extra `data`.

    Example:
        blocks = load_blocks(["stdlib"], tokenizer, DataConfig(block_size=128))
        blocks.train.shape  # [N, 128]
    """
    documents: Iterable[Document] = read_documents(sources, config)
    if train_tokens is not None:
        documents = read_enough(documents, tokenizer, config, train_tokens)
    train, aside = split_documents(documents, config.held_out)
    rows, inside = pack_blocks(train, tokenizer, config, "packing the training text")
    calibration, held_out = rows, aside
    if len({document.group for document in aside}) > 1:
        first, second = split_documents(aside, config.held_out / 2)
        encoded = encode_stream(first, tokenizer, control_tokens=config.control_tokens)
        if len(encoded.ids) >= config.block_size:
            calibration, _ = _rows(encoded, config.block_size, "packing the calibration text")
            held_out = second
    held_rows, _ = pack_blocks(held_out, tokenizer, config, "packing the held-out text")
    digest = hashlib.sha256(json.dumps(_of_a_fingerprint(config), sort_keys=True).encode())
    for part in (rows, calibration, held_rows):
        digest.update(f"{len(part)} rows".encode())
        digest.update(part.numpy().astype("<i8").tobytes())
    counts = (len(train), len(aside))
    return Blocks(rows, calibration, held_rows, digest.hexdigest()[:16], counts, inside)


def _of_a_fingerprint(config: DataConfig) -> dict[str, Any]:
    """The settings without newer ones at their defaults, so that earlier runs can be resumed."""
    later = ("control_tokens", "seed")
    default = to_dict(DataConfig())
    return {
        name: value
        for name, value in to_dict(config).items()
        if name not in later or value != default[name]
    }
