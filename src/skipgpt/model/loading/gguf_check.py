"""Whether a file is a whole GGUF file of a model that can be routed; no weights are read."""

from __future__ import annotations

from pathlib import Path

from skipgpt.errors import MissingExtraError, UnsupportedModelError
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.loading.gguf_header import Header, read_header


def checked_header(path: Path, doing: str) -> Header:
    """Read the header of a GGUF file, and check that it is whole and of a supported family.

    Raises:
        UnsupportedModelError: it is not; the message says why.
        MissingExtraError: the extra `gguf` is not installed.
    """
    header = read_header(path, doing)
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", doing) from error
    _check_size(header, path.stat().st_size, doing)
    if (count := header.values.get("split.count", 1)) > 1:
        raise UnsupportedModelError(
            doing,
            got=f"one of {count} files that a model is split into",
            expected="a model in one file",
            todo="run: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
        )
    supported = _architectures()
    if _plain(header.architecture) not in map(_plain, supported):
        raise UnsupportedModelError(
            doing,
            got=f"a GGUF file of the architecture {header.architecture!r}",
            expected="one of " + ", ".join(supported),
            todo="load the model from its transformers folder, if `skipgpt families` lists it",
        )
    return header


def _check_size(header: Header, size: int, doing: str) -> None:
    try:
        end = max((tensor.end for tensor in header.tensors.values()), default=0)
    except ValueError as error:
        raise UnsupportedModelError(
            doing,
            got=f"a tensor type that the package gguf does not know ({error})",
            expected="a GGUF file of known tensor types",
            todo="upgrade gguf",
        ) from error
    if size < end:
        raise UnsupportedModelError(
            doing,
            got=f"a file of {size:,} bytes whose tensors end at {end:,}",
            expected="a whole GGUF file",
            todo="copy or download the file again",
        )


def _architectures() -> list[str]:
    """The architectures that transformers reads and whose families are supported."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as READABLE

    return sorted(name for name in READABLE if {name, f"{name}_text"} & FAMILIES.keys())


def _plain(architecture: str) -> str:
    """The name without dashes and underscores, in which files and transformers differ."""
    return architecture.replace("-", "").replace("_", "")
