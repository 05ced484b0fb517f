"""The header of a GGUF file: its settings, and where its tensors lie. No weights are read.

    magic      b"GGUF"
    counts     version u32, tensors u64, settings u64
    settings   key, type u32, value
    tensors    name, number of dimensions u32, dimensions u64 …, type u32, offset u64
    weights    from the next multiple of `general.alignment`

A string is its length, u64, and its bytes in UTF-8. An array is the type of its entries, u32, how
many there are, u64, and the entries. All numbers are little-endian.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from skipgpt.errors import UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_FORMATS = "BbHhIif?--Qqd"
"""`struct` formats of the types of a fixed size, by type number."""
_ALIGNMENT, _MOST_DIMENSIONS = 32, 8


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored.

    Attributes:
        shape: as torch has it, slowest dimension first.
        kind: number of its `GGMLQuantizationType`.
        offset: of its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def end(self) -> int:
        """The offset after its last byte, by gguf; a ValueError if that knows no such type."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        weights, size = map(int, GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)])
        return self.offset + math.prod(self.shape) // weights * size


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        values: the settings; for an array only its length.
        tensors: by the names of llama.cpp, as in `blk.0.attn_q.weight`.
    """

    values: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """Name of the architecture in llama.cpp; empty if the file does not say."""
        return str(self.values.get("general.architecture", ""))

    def own(self, key: str, default: Any = None) -> Any:
        """The setting of the file's architecture: `own("block_count")` is `llama.block_count`."""
        return self.values.get(f"{self.architecture}.{key}", default)


def read_header(path: Path, doing: str) -> Header:
    """Read the header of a file.

    Raises:
        UnsupportedModelError: there is no such file, it is of another format, or it ends within
            its header.

    Example:
        read_header(Path("model.gguf"), "loading the base model").architecture
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Cursor(file, size))
    except OSError as error:
        raise UnsupportedModelError(
            doing,
            got=error.strerror or str(error),
            expected="a GGUF file on this machine",
            todo="check the path; download a file from a hub first",
        ) from error
    except (EOFError, _NoHeaderError) as error:
        raise UnsupportedModelError(
            doing,
            got=f"a file {error}",
            expected="a whole GGUF file of version 2 or 3",
            todo="copy or download the file again",
        ) from error


class _NoHeaderError(Exception):
    """The file is of another format; the message goes on after "got a file"."""


def _read(cursor: _Cursor) -> Header:
    if (magic := cursor.take(min(cursor.left, len(MAGIC)))) != MAGIC:
        raise _NoHeaderError(f"that starts with {magic!r}")
    version, tensors, settings = cursor.numbers("IQQ")
    if version not in VERSIONS:
        raise _NoHeaderError(f"of GGUF version {version}")
    values: dict[str, Any] = {}
    for _ in range(settings):
        key = cursor.string()
        values[key] = cursor.value(*cursor.numbers("I"))
    found = {}
    for _ in range(tensors):
        name, (dimensions,) = cursor.string(), cursor.numbers("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _NoHeaderError(f"with a tensor of {dimensions} dimensions")
        shape = cursor.numbers("Q" * dimensions)[::-1]
        found[name] = StoredTensor(shape, *cursor.numbers("IQ"))
    step = values.get("general.alignment", _ALIGNMENT)
    if not isinstance(step, int) or step < 1:
        raise _NoHeaderError(f"with weights aligned to {step!r} bytes")
    start = -(-cursor.place // step) * step
    placed = {name: replace(each, offset=start + each.offset) for name, each in found.items()}
    return Header(values, placed)


class _Cursor:
    """Reads values one after the other, never past the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    @property
    def place(self) -> int:
        return self._file.tell()

    @property
    def left(self) -> int:
        return self._size - self.place

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise EOFError(f"of {self._size:,} bytes that ends within its header")
        return self._file.read(count)

    def numbers(self, formats: str) -> tuple[Any, ...]:
        packed = "<" + formats
        return struct.unpack(packed, self.take(struct.calcsize(packed)))

    def string(self) -> str:
        return self.take(*self.numbers("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._length_of_array()
        return self.numbers(_format_of(kind))[0]

    def _length_of_array(self) -> int:
        kind, count = map(int, self.numbers("IQ"))
        if kind == _STRING:
            for _ in range(count):
                self.string()
        else:
            self.take(struct.calcsize("<" + _format_of(kind)) * count)
        return count


def _format_of(kind: int) -> str:
    if kind >= len(_FORMATS) or kind in (_STRING, _ARRAY):
        raise _NoHeaderError(f"with a setting of the unknown type {kind}")
    return _FORMATS[kind]
