"""What a document is, and how text without rows is cut into documents."""

from __future__ import annotations

import hashlib
import io
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
SECTION = 8 * 1024
GIGANTIC_LINE = 4 * SECTION


@dataclass(frozen=True)
class Document:
    """A text that is read from its beginning and never divided between training and held-out.

    Attributes:
        name: where it came from, for people.
        text: all of it.
        group: documents of one group always fall on the same side of the split.
        streamed: whether its source may not end, and is read only as far as needed.
    """

    name: str
    text: str
    group: str
    streamed: bool = False


def document_of(name: str, text: str, *, streamed: bool = False) -> Document:
    """A document that is its own group, together with its exact duplicates."""
    return Document(name, text, hashlib.sha256(text.encode()).hexdigest()[:16], streamed)


def stdlib_documents(with_tests: bool = False) -> list[Document]:
    """The Python standard library's own sources, in the order of their paths.

    A module and its test (`json/decoder.py`, `test_decoder.py`), and a module and its private half
    (`operator.py`, `_operator.py`), share a group. Files that are not UTF-8 are left out, as are
    installed packages, and the library's tests, about as much text again, unless asked for.

    Example:
        >>> {document.name for document in stdlib_documents()} >= {"argparse.py", "json/tool.py"}
        True
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "__pycache__"} & set(parts):
            continue
        is_test = any(p in ("test", "tests", "idle_test") or p.startswith("test_") for p in parts)
        if is_test and not with_tests:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        stem = path.stem if path.stem != "__init__" else path.parent.name
        group = stem.removeprefix("test_").lstrip("_")
        documents.append(Document("/".join(parts), text, group))
    return documents


def split_text(name: str, text: str, *, lone: bool) -> Iterator[Document]:
    """Cut the text of one file into documents, as far as their boundaries can be known.

    Markers `<|endoftext|>` are boundaries wherever they stand. A file without them is one document,
    unless it is all there is (`lone`): then it is cut into sections.
    """
    if END_OF_TEXT in text:
        pieces = [piece.strip("\n") for piece in text.split(END_OF_TEXT)]
    elif lone:
        pieces = cut_sections(text)
    else:
        pieces = [text]
    pieces = [piece for piece in pieces if piece.strip()]
    for number, piece in enumerate(pieces, 1):
        yield document_of(f"{name}#{number}" if len(pieces) > 1 else name, piece)


def cut_sections(text: str) -> list[str]:
    r"""Cut a text after blank lines, or else lines, into sections of at least 8 Ki characters.

    Joined, the sections are the text again. A section ends at the first blank line past 8 Ki
    characters, or at the first line end past 16 Ki; only a line of more than 32 Ki is cut inside.

    Example:
        >>> [len(section) for section in cut_sections(("word " * 20 + "\n\n") * 200)]
        [8262, 12138]
    """
    sections: list[str] = []
    lines: list[str] = []
    length = 0
    for line in _lines(text):
        lines.append(line)
        length += len(line)
        if length >= 2 * SECTION or (length >= SECTION and not line.strip()):
            sections.append("".join(lines))
            lines, length = [], 0
    rest = "".join(lines)
    if sections and len(rest) < SECTION:
        sections[-1] += rest
    elif rest:
        sections.append(rest)
    return sections


def _lines(text: str) -> Iterator[str]:
    """The lines with their ends; a gigantic one in pieces."""
    for line in io.StringIO(text):
        for start in range(0, len(line), GIGANTIC_LINE):
            yield line[start : start + GIGANTIC_LINE]
