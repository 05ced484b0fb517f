"""Sources made of rows - JSON lines, parquet, hub datasets - as one document per row."""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from skipgpt.data.decoding import decode, is_pipe, raw_lines
from skipgpt.data.documents import Document, document_of
from skipgpt.data.encoding import has_surrogates
from skipgpt.errors import DataError, MissingExtraError, SkipGPTError, in_brief

T = TypeVar("T")
Row = tuple[int, dict[str, Any]]

SHUFFLED = 1000
"""Size of the shuffle buffer of a hub dataset, in rows."""
OR_TEXT = "; or, if it is text, write it to a file that ends in .txt"
"""Advice to add where the first line, not a name, said that these are rows."""


def json_documents(
    path: Path, name: str, field: str, lines: Iterable[bytes] | None = None
) -> Iterator[Document]:
    """The documents of a file with one JSON object per line, or of these lines of it."""
    return _row_documents(
        json_rows(path, lines),
        f"reading {path}",
        f"{name}, line",
        field,
        streamed=is_pipe(path),
        guessed=lines is not None,
    )


def parquet_documents(path: Path, name: str, field: str) -> Iterator[Document]:
    """The documents of a parquet file."""
    doing = f"reading {path}"
    rows = guarded(
        _parquet_rows(path, field, import_extra("pyarrow.parquet", doing)),
        doing,
        expected="a whole parquet file",
        todo="fetch or write the file again",
    )
    return _row_documents(rows, doing, f"{name}, row", field)


def hub_documents(source: str, field: str, seed: int = 0) -> Iterator[Document]:
    """The documents of a hub dataset, `org/name` or `org/name:config`, shuffled by a seed."""
    doing = f"streaming the hub dataset {source}"
    rows = guarded(
        _hub_rows(source, seed, import_extra("datasets", doing)),
        doing,
        expected="a dataset that can be reached, with a split named train",
        todo="check the id (org/name:config where it has several), the network and "
        "HF_HUB_OFFLINE; or fetch its files and give those",
    )
    return _row_documents(rows, doing, f"{source}, row", field, streamed=True)


def json_rows(path: Path, lines: Iterable[bytes] | None = None) -> Iterator[Row]:
    """The objects of a JSON lines file with their line numbers; blank lines are passed over."""
    offset = 0
    for number, raw in enumerate(raw_lines(path) if lines is None else lines, 1):
        line = decode(raw, path, offset)
        offset += len(raw)
        if line.strip():
            yield number, _json_object(line, path, number, lines is not None)


def is_json_object(line: bytes) -> bool:
    """Whether a line is one of JSON lines."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_object(line: str, path: Path, number: int, guessed: bool) -> dict[str, Any]:
    try:
        row = json.loads(line)
        problem = "" if isinstance(row, dict) else f"which holds a {_json_type(row)}"
    # A number too long or brackets too deep are not JSON errors to the parser.
    except (ValueError, RecursionError) as error:
        problem = f"which is not JSON ({error})"
    if problem:
        raise DataError(
            f"reading {path}",
            got=f"line {number}, {problem}",
            expected="one JSON object per line",
            todo="repair the line; a JSON array becomes lines with: jq -c '.[]'"
            + (OR_TEXT if guessed else ""),
        )
    return dict(row)


def _parquet_rows(path: Path, field: str, parquet: Any) -> Iterator[Row]:
    """Yield numbered rows, with the text column only if there is one."""
    with parquet.ParquetFile(path) as file:
        columns = [field] if field in file.schema_arrow.names else None
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _hub_rows(source: str, seed: int, datasets: Any) -> Iterator[Row]:
    name, _, subset = source.partition(":")
    stream = datasets.load_dataset(name, subset or None, split="train", streaming=True)
    if hasattr(stream, "shuffle"):  # its files, and rows that lie near each other
        stream = stream.shuffle(seed=seed, buffer_size=SHUFFLED)
    yield from enumerate(stream, 1)


def _row_documents(
    rows: Iterator[Row],
    doing: str,
    name: str,
    field: str,
    *,
    streamed: bool = False,
    guessed: bool = False,
) -> Iterator[Document]:
    """Yield one document per row; rows whose text is empty or null are passed over.

    `name` names a row up to its number; its last word is the unit in errors.
    """
    unit = name.rpartition(" ")[2]
    for number, row in rows:
        if field not in row:
            raise DataError(
                doing,
                got=f"{unit} {number} with the fields {', '.join(row) or '(none)'}",
                expected=f"a field {field!r}",
                todo=_name_another(row) + (OR_TEXT if guessed else ""),
            )
        text = row[field]
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(
                doing,
                got=f"{unit} {number}, where {field!r} holds a {_json_type(text)}",
                expected="a string",
                todo=_name_another(row) + (OR_TEXT if guessed else ""),
            )
        if has_surrogates(text):
            raise DataError(
                doing,
                got=f"{unit} {number} with half a surrogate pair",
                expected="text that can be written in UTF-8",
                todo="repair or drop the row",
            )
        if text.strip():
            yield document_of(f"{name} {number}", text, streamed=streamed)


def _name_another(row: dict[str, Any]) -> str:
    """Advice to name the field of the longest text in a row, as the command line takes it."""
    texts = {key: value for key, value in row.items() if isinstance(value, str)}
    if not texts:
        return "give rows with a field of text, and name it: --text-field=NAME (text_field)"
    field = max(texts, key=lambda key: len(texts[key]))
    return f"name the field that holds the text: --text-field={shlex.quote(field)} (text_field)"


def _json_type(value: object) -> str:
    names = {list: "list", dict: "object", bool: "boolean", str: "string", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "value")


def guarded(rows: Iterator[T], doing: str, *, expected: str, todo: str) -> Iterator[T]:
    """The same rows, with whatever a foreign reader raises turned into a `DataError`."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except SkipGPTError:
            raise
        except Exception as error:
            raise DataError(doing, got=in_brief(error), expected=expected, todo=todo) from error
        yield row


def import_extra(module: str, doing: str) -> Any:
    """Import a module of the extra `data`; a MissingExtraError where it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], "data", doing) from error
