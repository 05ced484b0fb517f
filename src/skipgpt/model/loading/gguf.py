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
from skipgpt.model.loading.gguf_rope import DIVISORS, scale_rope, setting
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

    file = _checked_file(path, doing)
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer releases may leave weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    _show_progress_as_transformers_does()
    with _by_itself(path) as where:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, loading = AutoModelForCausalLM.from_pretrained(
            **where,
            config=_config(where, file, doing),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reports them; they are refused below
            **options,
        )
    refuse_tensors(
        doing,
        missing=loading["missing_keys"],
        misfits={name: (have, want) for name, have, want in loading["mismatched_keys"]},
        unknown=_unread(model, file),
        what="a GGUF file",
        todo="load the model from its transformers folder",
    )
    for role, key in _SPECIAL_TOKENS.items():
        number = setting(file, f"tokenizer.ggml.{key}_token_id")
        token = None if number is None else tokenizer.convert_ids_to_tokens(number)
        setattr(tokenizer, f"{role}_token", token)
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = str(path)
    return model, tokenizer


def gguf_config(path: Path, doing: str) -> Any:
    """The config of the model in a GGUF file, without reading weights; raises as `load_gguf`."""
    file = _checked_file(path, doing)
    with _by_itself(path) as where:
        return _config(where, file, doing)


def _checked_file(path: Path, doing: str) -> Any:
    """Open a GGUF file; raise if it is not whole or its family is not supported."""
    file = _opened(path, doing)
    if (count := setting(file, "split.count", 1)) > 1:
        raise UnsupportedModelError(
            doing,
            got=f"one of {count} files that a model is split into",
            expected="a model in one file",
            todo="run: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
        )
    supported, found = _architectures(), setting(file, "general.architecture", "")
    if _plain(found) not in map(_plain, supported):
        raise UnsupportedModelError(
            doing,
            got=f"a GGUF file of the architecture {found!r}",
            expected="one of " + ", ".join(supported),
            todo="load the model from its transformers folder, if `skipgpt families` lists it",
        )
    return file


def _opened(path: Path, doing: str) -> Any:
    """The `gguf.GGUFReader` of a file, which maps it into memory."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UnsupportedModelError(
            doing,
            got=error.strerror or str(error),
            expected="a GGUF file on this machine",
            todo="check the path; download a file from a hub first",
        ) from error
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", doing) from error
    try:
        return GGUFReader(path)
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            doing,
            got=f"a file of {path.stat().st_size:,} bytes that the package gguf cannot read "
            f"({error})",
            expected="a whole GGUF file of tensor types that the package knows",
            todo="copy or download the file again; upgrade gguf if that does not help",
        ) from error


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


def _config(where: dict[str, str], file: Any, doing: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(**where)
    vars(config).pop("_model_name_or_path", None)  # `general.name` is no path
    scale_rope(config, file, doing)
    return config


def _unread(model: Any, file: Any) -> set[str]:
    """The file's tensors that transformers has no parameter for."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(setting(file, "general.architecture"), TensorProcessor)
    names = get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    read = {name.removesuffix(".weight") for name in names} | {DIVISORS.removesuffix(".weight")}
    stored = {tensor.name for tensor in file.tensors}
    return {name for name in stored if name.removesuffix(".weight") not in read}


def _show_progress_as_transformers_does() -> None:
    """Turn the GGUF reader's progress bar off where those of transformers are off."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    reader.tqdm = logging.tqdm
