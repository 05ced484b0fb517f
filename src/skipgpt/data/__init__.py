"""Text, JSONL, parquet, folders, hub datasets and `stdlib`, as packed token blocks.

Read in this order: `documents` (what a document is), `sources` (where documents come from),
`encoding` and `stream` (how they become tokens, and `detokenize` how tokens become text), `split`
(which of them are held out, and how far a data set that may not end is read), `blocks` (how they
become rows of tokens).
"""

from __future__ import annotations

from skipgpt.data.blocks import Blocks, load_blocks, pack_blocks
from skipgpt.data.documents import Document, stdlib_documents
from skipgpt.data.sources import read_documents
from skipgpt.data.split import split_documents
from skipgpt.data.stream import encode_beginning, encode_stream

__all__ = [
    "Document",
    "read_documents",
    "stdlib_documents",
    "split_documents",
    "encode_stream",
    "encode_beginning",
    "pack_blocks",
    "Blocks",
    "load_blocks",
]
