"""Where documents come from: files, folders, hub datasets and the standard library."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from skipgpt.config import DataConfig
from skipgpt.data.decoding import (
    JSON_LINES,
    ROWS,
    first_line,
    is_binary,
    is_nameless,
    joined_text,
    read_text,
)
from skipgpt.data.documents import Document, split_text, stdlib_documents
from skipgpt.data.rows import hub_documents, is_json_object, json_documents, parquet_documents
from skipgpt.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

FILE_SUFFIXES = (*ROWS, ".txt", ".text", ".md", ".rst", ".py", ".csv", ".tsv")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


def read_documents(
    sources: Sequence[str], config: DataConfig, *, sections: bool = True
) -> Iterator[Document]:
    """Read documents from sources in their order, no further than `config.max_documents`.

    A source is

    - a text file in UTF-8: one document, or one per part between `<|endoftext|>` markers. Where it
      is the only file, and has no marker, it is cut into `sections` of at least 8 KiB characters;
    - a `.jsonl`, `.ndjson` or `.json` file with one object per line, or a `.parquet` file: one
      document per row, from the field `config.text_field`; rows without text are passed over;
    - a pipe: JSON lines where its first line is an object, else text in UTF-8, up to 256 MiB;
    - a folder: every file below it in the order of their paths, except hidden, empty and binary;
    - the word `stdlib`: the sources of Python's standard library (a folder of that name can be
      given as `./stdlib`);
    - a hub dataset, `org/name` or `org/name:config`: its split `train`, streamed in an order that
      `config.seed` fixes.

    Raises:
        ConfigError: a field of rows is named, and no source has rows.
        DataError: a source is not found (at once), or cannot be read or holds no text (when its
            turn comes).
        MissingExtraError: a parquet file or hub dataset without the extra `data`.

    Example:
        >>> config = DataConfig(max_documents=2)
        >>> [document.name for document in read_documents(["stdlib"], config)]
        ['__future__.py', '__hello__.py']
    """
    if not sources:
        raise DataError(
            "reading the data", got="no source", expected="one or more", todo="give --data SRC"
        )
    if _names_field(config) and not any(map(_may_have_rows, sources)):
        raise _no_rows(config)
    lone = sections and len(sources) == 1
    readers = [_reader(source, config, lone=lone) for source in sources]
    documents = chain.from_iterable(reader() for reader in readers)
    return islice(documents, config.max_documents or None)


def is_streamed(source: str) -> bool:
    """Whether a source is a hub dataset, which is streamed and may not end."""
    if source == "stdlib" or os.path.exists(os.path.expanduser(source)):
        return False
    return bool(HUB_ID.fullmatch(source)) and not source.lower().endswith(FILE_SUFFIXES)


def _names_field(config: DataConfig) -> bool:
    """Whether a field of rows is named, other than the one that is read unasked."""
    return config.text_field != DataConfig().text_field


def _may_have_rows(source: str) -> bool:
    """Whether a source has rows, as far as can be told before it is read."""
    path = Path(os.path.expanduser(source))
    if source == "stdlib":
        return False
    if os.path.isdir(path):
        return any(each.suffix.lower() in ROWS for each in _files_in(path).values())
    return path.suffix.lower() in ROWS or is_nameless(path) or not os.path.exists(path)


def _no_rows(config: DataConfig) -> ConfigError:
    return ConfigError(
        "reading the data",
        got=f"the field {config.text_field!r} of plain text",
        expected=f"a source with rows: {', '.join(ROWS)} files, a folder with such files, a hub "
        "dataset, or JSON lines through a pipe",
        todo="leave out --text-field (text_field=)",
    )


def check_limit(sources: Sequence[str], limit: int, name: str) -> None:
    """Raise ConfigError if the limit is 0 and a source is a hub dataset, which may not end."""
    if not limit and (streamed := [source for source in sources if is_streamed(source)]):
        raise ConfigError(
            f"streaming the hub dataset {streamed[0]}",
            got="no limit of what is read",
            expected="one: a streamed data set may not end",
            todo=f"give {name}",
        )


def _reader(source: str, config: DataConfig, *, lone: bool) -> Callable[[], Iterator[Document]]:
    """A function that reads a source, which is looked up now and read later."""
    if source == "stdlib":
        return lambda: iter(stdlib_documents())
    path = Path(os.path.expanduser(source))
    # os.path, because a Path raises where a name is too long or no such user is known.
    if os.path.isdir(path):
        return lambda: _some(
            _folder_documents(path, config, lone),
            f"reading the folder {path}",
            got="a folder without text",
            expected="text, JSONL or parquet files in or below it (hidden ones are not read)",
        )
    if os.path.exists(path):
        return lambda: _some(
            _file_documents(path, path.name, config, lone),
            f"reading {path}",
            got="an empty file" if _is_empty(path) else "a file without text",
            expected="text",
        )
    if is_streamed(source):
        return lambda: _some(
            hub_documents(source, config.text_field, config.seed),
            f"streaming the hub dataset {source}",
            got="no row with text",
            expected="text",
        )
    raise DataError(
        "reading the data",
        got=f"{source!r}, where nothing is",
        expected="a file, a folder, a hub dataset as org/name or org/name:config, or stdlib",
        todo=f"check the spelling; paths are relative to {Path.cwd()}",
    )


def _some(
    documents: Iterator[Document], doing: str, *, got: str, expected: str
) -> Iterator[Document]:
    """Yield the documents; raise if there are none."""
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise DataError(doing, got=got, expected=expected, todo="give another source")


def _files_in(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its name, in the order of their paths, but hidden or empty."""
    below = {path.relative_to(folder).parts: path for path in folder.rglob("*") if path.is_file()}
    return {
        "/".join(parts): below[parts]
        for parts in sorted(below)
        if not any(part.startswith(".") or part == "__pycache__" for part in parts)
        and not _is_empty(below[parts])
    }


def _folder_documents(folder: Path, config: DataConfig, lone: bool) -> Iterator[Document]:
    files: dict[str, Path] = {}
    for name, path in _files_in(folder).items():
        if path.suffix.lower() not in ROWS and is_binary(path):
            logger.warning("leaving out the binary file %s", path)
            continue
        files[name] = path
    for name, path in files.items():
        yield from _file_documents(path, name, config, lone and len(files) == 1)


def _is_empty(path: Path) -> bool:
    """Whether a file has no bytes; the size of a pipe says nothing."""
    return path.is_file() and path.stat().st_size == 0


def _file_documents(path: Path, name: str, config: DataConfig, lone: bool) -> Iterator[Document]:
    """The documents of one file, by its suffix, or of a pipe; none where it is empty."""
    if _is_empty(path):
        return
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from parquet_documents(path, name, config.text_field)
    elif suffix in JSON_LINES:
        yield from json_documents(path, name, config.text_field)
    elif is_nameless(path):
        yield from _piped_documents(path, name, config, lone)
    else:
        yield from split_text(name, read_text(path), lone=lone)


def _piped_documents(path: Path, name: str, config: DataConfig, lone: bool) -> Iterator[Document]:
    """The documents of a pipe, by its first line that is not blank."""
    first, lines = first_line(path)
    if is_json_object(first):
        yield from json_documents(path, name, config.text_field, lines)
    elif first and _names_field(config):
        raise _no_rows(config)
    else:
        yield from split_text(name, joined_text(path, lines), lone=lone)
