"""Cuts sources of text into the rows to measure on, the same for every command that reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skipgpt.config import DataConfig
from skipgpt.data import encode_beginning, read_documents
from skipgpt.data.sources import check_limit
from skipgpt.errors import ConfigError
from skipgpt.evaluation.windows import rows_of, within_context
from skipgpt.model.loading.limits import check_ids


@dataclass(frozen=True, eq=False)
class SourceRows:
    """Rows read from sources of text.

    Attributes:
        rows: rows of token ids, without context before them.
        length: tokens per row; the last one may be shorter.
        texts: the documents that the rows are of; the last of them may continue after the rows.
        said: how the text was cut, in a sentence.
        first: tokens read, if the text continues after them; else 0.
        inside: rows that begin inside a document.
    """

    rows: list[Tensor]
    length: int
    texts: tuple[str, ...]
    said: str
    first: int = 0
    inside: int = 0


def source_rows(
    sources: Sequence[str], tokenizer: Any, model: Any, config: DataConfig, *, max_tokens: int = 0
) -> SourceRows:
    """Read sources and cut them into rows no longer than the model's context.

    The config says the tokens per row (`block_size`) and, with the sources, what
    `skipgpt.data.read_documents` reads; of that, no more than `max_tokens` are taken, or all if 0.

    Raises:
        ConfigError: a negative `max_tokens`.
        DataError: a source cannot be read, holds fewer than two tokens, or one that the model does
            not have.

    Example:
        rows = source_rows(["README.md"], tokenizer, model, DataConfig(block_size=512)).rows
    """
    if max_tokens < 0:
        raise ConfigError("reading max_tokens", got=str(max_tokens), expected="0 (all) or more")
    check_limit(sources, max_tokens or config.max_documents, "--max-tokens (max_tokens)")
    encoded, read = encode_beginning(
        read_documents(sources, config), tokenizer, max_tokens, control_tokens=config.control_tokens
    )
    ids = encoded.ids
    length = within_context(model, config.block_size)
    cut = bool(max_tokens) and len(ids) > max_tokens
    ids = ids[:max_tokens] if max_tokens else ids
    check_ids("reading the text", model, tokenizer, ids)
    rows = rows_of(ids, length)
    said = "the first " * cut + f"{len(ids):,} tokens"
    if len(rows) > 1:
        said += f" in {len(rows):,} rows of {length}, each without context"
    inside = encoded.inside(range(0, len(rows) * length, length))
    if inside:
        said += f", {inside:,} from inside a document"
    texts = tuple(document.text for document in read)
    return SourceRows(rows, length, texts, said, len(ids) if cut else 0, inside)
