"""Documents -> two sides of a split -> packed rows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from skipgpt.config import DataConfig
from skipgpt.config.settings import to_dict
from skipgpt.data.documents import Document
from skipgpt.data.enough import read_enough
from skipgpt.data.sources import may_not_end, read_documents
from skipgpt.data.split import split_documents
from skipgpt.data.stream import encode_documents, encode_stream
from skipgpt.errors import DataError
from skipgpt.system.progress import advancing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    doing: str = "packing the text into rows",
    *,
    control_tokens: bool = False,
) -> Tensor:
    """Cut the stream of `encode_documents` into rows; a remainder shorter than a row is dropped.

    Args:
        documents: in the order they are packed.
        tokenizer: of the base model.
        block_size: tokens per row (T).
        doing: for errors.
        control_tokens: as for `encode_documents`.

    Returns:
        Token ids [N, T], int64, with N at least 1.

    Raises:
        DataError: too short for one row.

    Example:
        rows = pack_blocks(documents, tokenizer, block_size=256)
    """
    rows, _ = _packed(documents, tokenizer, block_size, doing, control_tokens)
    return rows


def _packed(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    doing: str,
    control_tokens: bool,
) -> tuple[Tensor, int]:
    """The rows, and how many of them begin inside a document."""
    encoded = encode_stream(documents, tokenizer, control_tokens=control_tokens)
    ids = encoded.ids
    rows = len(ids) // block_size
    if not rows:
        raise DataError(
            doing,
            got=f"{len(ids)} tokens, which is too short",
            expected=f"{block_size} or more, the length of one row",
            todo="give more text, or fewer tokens per row (--block-size)",
        )
    inside = encoded.inside(range(0, rows * block_size, block_size))
    return ids[: rows * block_size].view(rows, block_size), inside


@advancing("reading the text and cutting it into rows", announced=True)
def load_blocks(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    train_tokens: int | None = None,
) -> Blocks:
    """Read, split, encode and pack.

    Files are read whole. A hub dataset or a pipe of JSON lines, which may not end, is read as far
    as `train_tokens`, the calibration and the evaluation need.

    Args:
        sources: as for `read_documents`.
        tokenizer: of the base model.
        config: how to cut and split.
        train_tokens: how many tokens training takes; None reads hub datasets to their end, too.

    Raises:
        DataError: a source cannot be read, or there is too little text on one side.
        MissingExtraError: a parquet file or hub dataset without the extra `data`.

    Example:
        blocks = load_blocks(["stdlib"], tokenizer, DataConfig(block_size=128))
        blocks.train.shape  # [N, 128]
    """
    documents: Iterable[Document] = read_documents(sources, config)
    if train_tokens is not None and any(map(may_not_end, sources)):
        documents = read_enough(documents, tokenizer, config, train_tokens)
    train, aside = split_documents(documents, config.held_out)
    controls = config.control_tokens

    def pack(documents: Sequence[Document], doing: str) -> tuple[Tensor, int]:
        return _packed(documents, tokenizer, config.block_size, doing, controls)

    rows, inside = pack(train, "packing the training text")
    calibration, held_out = rows, aside
    if len({document.group for document in aside}) > 1:
        first, second = split_documents(aside, config.held_out / 2)
        if len(encode_documents(first, tokenizer, control_tokens=controls)) >= config.block_size:
            calibration, _ = pack(first, "packing the calibration text")
            held_out = second
    held_rows, _ = pack(held_out, "packing the held-out text")
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
