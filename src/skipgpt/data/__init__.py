"""Text, JSONL, parquet, folders, hub datasets and `stdlib`, as packed token blocks.

Read in this order: `documents` (what a document is), `sources` (where documents come from),
`blocks` (how they become rows of tokens, and which of them are held out).
"""

from __future__ import annotations

from skipgpt.data.blocks import (
    Blocks,
    encode_beginning,
    encode_documents,
    load_blocks,
    pack_blocks,
    split_documents,
)
from skipgpt.data.documents import Document, stdlib_documents
from skipgpt.data.sources import read_documents

__all__ = [
    "Document",
    "read_documents",
    "stdlib_documents",
    "split_documents",
    "encode_documents",
    "encode_beginning",
    "pack_blocks",
    "Blocks",
    "load_blocks",
]
