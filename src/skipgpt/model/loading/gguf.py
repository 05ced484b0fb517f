"""Base models in GGUF files, the format of llama.cpp.

transformers reads them, and unpacks quantised weights to the dtype that is asked for. Five of its
behaviours do not suit a base model and are corrected here:

    neighbours         files beside the GGUF file, or of its name in the working directory, are
                       read, too: it is given an empty folder and an absolute path
    missing tensors    are initialised at random: refused, and so are those of another shape
    unknown tensors    are ignored, biases as well: refused
    rotary embedding   scaling is ignored: see `gguf_rope.py`
    special tokens     older releases guess the end of a text: taken from the file
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from skipgpt.errors import ConfigError, MissingExtraError, UnsupportedModelError
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.loading.gguf_header import Header, read_header
from skipgpt.model.loading.gguf_rope import DIVISORS, scale_rope
from skipgpt.model.loading.weights import refuse_tensors

_SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def is_gguf(name: str | Path) -> bool:
    """Whether a base model's name is that of a GGUF file, which need not exist.

    Example:
        >>> is_gguf("models/smollm2.Q4_1.gguf")
        True
    """
    path = Path(name)
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def load_gguf(path: Path, dtype: torch.dtype, doing: str) -> tuple[Any, Any]:
    """Load the model of a GGUF file at an absolute path, unpacked, on the CPU, and its tokenizer.

    Raises:
        UnsupportedModelError: it is no whole GGUF file, its architecture cannot be routed, or it
            has too few or too many tensors.
        MissingExtraError: the extra `gguf` is not installed.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    header = _checked_header(path, doing)
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer releases may leave weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    _show_progress_as_transformers_does()
    with _by_itself(path) as where:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, loading = AutoModelForCausalLM.from_pretrained(
            **where,
            config=_config(where, header, path, doing),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reports them; they are refused below
            **options,
        )
    refuse_tensors(
        doing,
        missing=loading["missing_keys"],
        misfits={name: (have, want) for name, have, want in loading["mismatched_keys"]},
        unknown=_unread(model, header),
        what="a GGUF file",
        todo="load the model from its transformers folder",
    )
    for role, key in _SPECIAL_TOKENS.items():
        number = header.values.get(f"tokenizer.ggml.{key}_token_id")
        token = None if number is None else tokenizer.convert_ids_to_tokens(number)
        setattr(tokenizer, f"{role}_token", token)
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = str(path)
    return model, tokenizer


def gguf_config(path: Path, doing: str) -> Any:
    """The config of the model in a GGUF file, without reading weights; raises as `load_gguf`."""
    header = _checked_header(path, doing)
    with _by_itself(path) as where:
        return _config(where, header, path, doing)


def _checked_header(path: Path, doing: str) -> Header:
    """Read the header of a GGUF file; raise if it is not whole or its family is not supported."""
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


def refuse_quantizing(name: str, kind: str | None) -> None:
    """Raise a ConfigError if a GGUF base is to be held in 8 or 4 bits."""
    if kind is not None:
        raise ConfigError(
            f"quantising the base {name!r} to {kind}",
            got="a GGUF file, whose weights are rounded already",
            expected="a base that is not quantised",
            todo="leave out --quantize (quantize=None)",
        )


@contextmanager
def _by_itself(path: Path) -> Iterator[dict[str, str]]:
    """Arguments with which `from_pretrained` reads this file and no other."""
    with tempfile.TemporaryDirectory() as folder:
        yield {"pretrained_model_name_or_path": folder, "gguf_file": str(path)}


def _config(where: dict[str, str], header: Header, path: Path, doing: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(**where)
    vars(config).pop("_model_name_or_path", None)  # `general.name` is no path
    scale_rope(config, header, path, doing)
    return config


def _unread(model: Any, header: Header) -> set[str]:
    """The file's tensors that transformers has no parameter for."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    names = get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    read = {name.removesuffix(".weight") for name in names} | {DIVISORS.removesuffix(".weight")}
    return {name for name in header.tensors if name.removesuffix(".weight") not in read}


def _show_progress_as_transformers_does() -> None:
    """Turn the GGUF reader's progress bar off where those of transformers are off."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    reader.tqdm = logging.tqdm
