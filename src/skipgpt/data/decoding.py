"""Bytes of a file or a pipe -> text, with advice where they are no UTF-8."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from skipgpt.errors import DataError

JSON_LINES = (".jsonl", ".json", ".ndjson")
ROWS = (*JSON_LINES, ".parquet")
DESCRIPTORS = ("/dev/stdin", "/dev/fd/", "/proc/")
"""Where paths begin that name an open file or pipe, not what it holds."""
SNIFFED = 8 * 1024
PART = 1024 * 1024
"""Bytes of a line that are read at once; between two parts a signal is answered."""
MOST_PIPED = 256 * 1024 * 1024
"""Bytes of plain text, or of one line, that are read from a pipe, which may not end."""
LEADING = 100
"""Blank lines that may stand before the line that tells what a pipe holds."""

# The longer marks come first: the mark of UTF-32-LE begins with that of UTF-16-LE.
OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def is_pipe(path: Path) -> bool:
    """Whether a path is there and may not end: neither a regular file nor a folder."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def is_nameless(path: Path) -> bool:
    """Whether a path is a pipe or a descriptor whose name does not tell what it holds."""
    opened = is_pipe(path) or str(path).startswith(DESCRIPTORS)
    return opened and path.suffix.lower() not in ROWS


def read_text(path: Path) -> str:
    """All of a text file, with every line end a line feed."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return _with_line_feeds(raw, path)


def joined_text(path: Path, lines: Iterable[bytes]) -> str:
    """All of a text file or a pipe, as `read_text` gives it, from its lines."""
    held = io.BytesIO()
    for line in lines:
        held.write(line)
        if held.tell() > MOST_PIPED and is_pipe(path):
            raise _too_much(path)
    return _with_line_feeds(held.getvalue(), path)


def _with_line_feeds(raw: bytes, path: Path) -> str:
    return decode(raw, path).replace("\r\n", "\n").replace("\r", "\n")


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file or a pipe with their ends, each read when it is asked for."""
    try:
        with path.open("rb") as file:
            parts: list[bytes] = []
            while part := file.readline(PART):
                parts.append(part)
                if part.endswith(b"\n"):
                    yield b"".join(parts)
                    parts = []
                elif len(parts) * PART > MOST_PIPED and is_pipe(path):
                    raise _too_much(path)
            if parts:
                yield b"".join(parts)
    except OSError as error:
        raise unreadable(path, error) from error


def first_line(path: Path) -> tuple[bytes, Iterator[bytes]]:
    """The line that tells what a pipe holds, the first that is not blank, and all of its lines."""
    rest, first = raw_lines(path), [b""]
    for line in islice(rest, LEADING):
        first.append(line)
        if line.strip():
            break
    return first[-1], chain(first[1:], rest)


def decode(raw: bytes, path: Path, offset: int = 0) -> str:
    """Bytes of a file, from `offset` on, as text; a UTF-8 byte order mark is dropped."""
    doing = f"reading {path}"
    if offset == 0:
        for mark, encoding in OTHER_MARKS.items():
            if raw.startswith(mark):
                raise DataError(
                    doing,
                    got=f"{encoding} text (by its byte order mark)",
                    expected="UTF-8",
                    todo=f"convert it to UTF-8, e.g. iconv -f {encoding.lower()} -t utf-8",
                )
        if raw.startswith(codecs.BOM_UTF8):
            raw, offset = raw.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
    if (position := raw.find(b"\0")) >= 0:
        raise DataError(
            doing,
            got=f"a binary file (NUL at byte {offset + position})",
            expected="text in UTF-8, JSONL or parquet",
            todo="unpack it if it is an archive, or leave it out",
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            doing,
            got=f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}, "
            "which is not UTF-8",
            expected="UTF-8",
            todo="convert it to UTF-8, e.g. iconv -f latin1 -t utf-8",
        ) from error


def is_binary(path: Path) -> bool:
    """Whether a file cannot be text; UTF-16 can, and is refused with advice when it is read."""
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED)
    except OSError as error:
        raise unreadable(path, error) from error
    return b"\0" in head and not head.startswith(tuple(OTHER_MARKS))


def _too_much(path: Path) -> DataError:
    """What to raise where a pipe gives more than may be held in memory."""
    return DataError(
        f"reading {path}",
        got=f"more than {MOST_PIPED:,} bytes of plain text, or of one line, through a pipe",
        expected="less, or JSON lines, which are read as far as they are needed",
        todo="write as much of it as is needed to a file, and give that",
    )


def unreadable(path: Path, error: OSError) -> DataError:
    """What to raise where the system refuses to read a file."""
    return DataError(
        f"reading {path}",
        got=error.strerror or str(error),
        expected="a file that can be read",
        todo="check its permissions",
    )
