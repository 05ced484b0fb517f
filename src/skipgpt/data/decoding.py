"""Bytes on disk -> text, with advice where they are no UTF-8."""

from __future__ import annotations

import codecs
from pathlib import Path

from skipgpt.errors import DataError

SNIFFED = 8 * 1024
# The longer marks come first: the mark of UTF-32-LE begins with that of UTF-16-LE.
OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path) -> str:
    """All of a text file, with every line end a line feed."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return decode(raw, path).replace("\r\n", "\n").replace("\r", "\n")


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


def unreadable(path: Path, error: OSError) -> DataError:
    """What to raise where the system refuses to read a file."""
    return DataError(
        f"reading {path}",
        got=error.strerror or str(error),
        expected="a file that can be read",
        todo="check its permissions",
    )
