"""Texts on disk, and what the readers of data make of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from skipgpt.config import DataConfig
from skipgpt.data import (
    Document,
    read_documents,
)
from skipgpt.errors import DataError

CONFIG = DataConfig(block_size=16, held_out=0.3)


SENTENCE = "The quick brown fox jumps over the lazy dog.\n"


def read(*sources: Path | str, **settings: object) -> list[Document]:
    config = dataclasses.replace(CONFIG, **settings)
    return list(read_documents([str(source) for source in sources], config))


def texts(*sources: Path | str, **settings: object) -> list[str]:
    return [document.text for document in read(*sources, **settings)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_rows(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, **columns: list[object]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return path


def refusal(*sources: Path | str, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(*sources, **settings)
    error = caught.value
    assert error.doing
    assert error.got
    assert error.expected
    assert error.todo
    return error


@contextlib.contextmanager
def piped(path: Path, parts: Iterable[bytes]) -> Iterator[Path]:
    """A pipe of this name that gives these parts, one by one, as long as it is read."""

    def give() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb") as file:
            for part in parts:
                file.write(part)

    os.mkfifo(path)
    try:
        threading.Thread(target=give, daemon=True).start()
        yield path
    finally:
        path.unlink()
