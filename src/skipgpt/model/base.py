"""The base model: where it is found and how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from skipgpt.errors import ConfigError, SkipGPTError, UnsupportedModelError, in_brief
from skipgpt.model.loading.bitsandbytes import check_quantization, loading_options, make_safe
from skipgpt.model.loading.folder import (
    CHECK_ID,
    EMBEDDED,
    kind_of_model,
    not_on_the_hub,
    refuse_unless_base,
)
from skipgpt.model.loading.gguf import gguf_config, is_gguf, load_gguf, refuse_quantizing
from skipgpt.model.loading.weights import load_strictly
from skipgpt.system.progress import advancing

_TOKENIZERS = ("*tokenizer*", "*vocab*", "merges.txt", "tekken.json", "*.model", "*.tiktoken")
_NO_CODE = {"trust_remote_code": False}
"""Without it transformers asks on the terminal and waits for an answer."""


def base_location(name: str) -> str:
    """What transformers is to load for a base model's name: a hub id, a folder or a GGUF file.

    `nano` is the model that ships with skipgpt; a folder or file is made absolute, so that a
    checkpoint made from it can be loaded from anywhere.
    """
    if name == EMBEDDED:
        return str(resources.files("skipgpt") / "nano")
    if is_gguf(name):  # a link is kept: what it points at may have a name without .gguf
        return str(Path(name).absolute())
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """The dtype for a device: float32 on a CPU, bfloat16 elsewhere, unless one is named.

    Raises:
        ConfigError: the name is not a floating-point dtype of torch, or the device is unknown.
    """
    if dtype == "auto":
        return torch.float32 if parse_device(device).type == "cpu" else torch.bfloat16
    chosen = getattr(torch, dtype, None)
    if not (isinstance(chosen, torch.dtype) and chosen.is_floating_point):
        raise ConfigError(
            "choosing the dtype", got=repr(dtype), expected="auto, float32, bfloat16 or float16"
        )
    return chosen


@advancing("loading the base model", announced=True)
def load_base(
    name: str,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str | None = None,
) -> tuple[Any, Any]:
    """Load a base model in evaluation mode, and its tokenizer.

    Args:
        name: hub id, folder, GGUF file, or `nano`.
        revision: of the hub id.
        device: where to put it.
        dtype: `auto`, or a name as in torch. The weights of a GGUF file are unpacked to it.
        quantize: `8bit` or `4bit`; a base that is stored quantised stays as it is stored.

    Raises:
        UnsupportedModelError: nothing that transformers can load is there, tensors are missing,
            unknown or of another shape, or bitsandbytes computes wrongly with it.
        ConfigError: the dtype, device or kind of quantisation is unknown, or a GGUF file is to be
            quantised once more.
        MissingExtraError: the base is to be quantised without the extra `quantize`, or it is a GGUF
            file and the extra `gguf` is not installed.
    """
    doing = f"loading the base model {name!r}"
    refuse_unless_base(name, doing)
    return _load(name, doing, revision, device, dtype, quantize)


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a hub id or folder; raise an UnsupportedModelError without one."""
    doing = f"loading the tokenizer of {name!r}"
    with _reading(name, doing, "a hub id or folder with a tokenizer"):
        return _read_tokenizer(base_location(name), doing, **_NO_CODE)


def _read_tokenizer(location: str, doing: str, **where: Any) -> Any:
    """Load a tokenizer; without its files transformers says little, or makes an empty one."""
    from transformers import AutoTokenizer

    folder = Path(location)
    if folder.is_dir() and not any(path for each in _TOKENIZERS for path in folder.glob(each)):
        raise UnsupportedModelError(
            doing,
            got="a folder without files of a tokenizer",
            expected="a model saved with its tokenizer",
            todo="copy tokenizer.json and tokenizer_config.json from the model that it was made "
            "from, or save that one's tokenizer there: tokenizer.save_pretrained(folder)",
        )
    return AutoTokenizer.from_pretrained(location, **where)


def load_merged(folder: str, *, device: str = "cpu", dtype: str = "auto") -> tuple[Any, Any]:
    """Load the routed model of a merged export in evaluation mode, and its tokenizer.

    The dtype is that of the base's weights: `auto`, or a name as in torch.

    Raises:
        UnsupportedModelError: transformers cannot load it, or tensors are missing, unknown or of
            another shape.
        ConfigError: the dtype or device is unknown.
    """
    return _load(folder, f"loading the merged export {folder}", None, device, dtype, None)


def _load(
    name: str, doing: str, revision: str | None, device: str, dtype: str, quantize: str | None
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    location = base_location(name)
    chosen, kind = choose_dtype(dtype, check_device(device)), check_quantization(quantize)
    where: dict[str, Any] = {"revision": revision, **_NO_CODE}
    quantized: dict[str, Any] = {}
    expected = "a hub id, a folder with config.json, weights and tokenizer, a GGUF file, or "
    with _reading(name, doing, f"{expected}{EMBEDDED!r}"):
        if is_gguf(location):
            refuse_quantizing(name, kind)
            model, tokenizer = load_gguf(Path(location), chosen, doing)
        else:
            config = AutoConfig.from_pretrained(location, **where)
            tokenizer = _read_tokenizer(location, doing, **where)
            quantized = loading_options(kind, config, chosen, device)
            load = AutoModelForCausalLM.from_pretrained
            model, _ = load_strictly(load, location, doing, dtype=chosen, **where, **quantized)
    make_safe(model, doing)
    return (model if quantized else model.to(device)).eval(), tokenizer


def base_config(name: str) -> Any:
    """The config of a base model (hub id, folder, GGUF file or `nano`); its weights may be absent.

    Raises:
        UnsupportedModelError: there is no config that transformers knows.
        MissingExtraError: it is a GGUF file and the extra `gguf` is not installed.
    """
    from transformers import AutoConfig

    location, doing = base_location(name), f"reading the config of {name!r}"
    refuse_unless_base(name, doing)
    expected = "a hub id, a folder with config.json, a GGUF file, a named shape, or "
    with _reading(name, doing, f"{expected}{EMBEDDED!r}"):
        if is_gguf(location):
            return gguf_config(Path(location), doing)
        return AutoConfig.from_pretrained(location, **_NO_CODE)


@contextmanager
def _reading(name: str, doing: str, expected: str) -> Iterator[None]:
    """Raise an UnsupportedModelError where transformers cannot read a model.

    It holds the first line of transformers' message.
    """
    try:
        yield
    except SkipGPTError:
        raise
    except Exception as error:  # transformers raises whatever its readers raise
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                doing,
                got="a model whose code lies beside its weights",
                expected="one whose code is part of transformers; that of others is never run",
                todo="see `skipgpt families` for the models that can be routed",
            ) from error
        # An error of a disk has a number; what transformers raises about the hub has none.
        from_hub = isinstance(error, OSError) and error.errno is None
        if from_hub and kind_of_model(name) == "remote":
            raise UnsupportedModelError(
                doing, got=not_on_the_hub(error), expected=expected, todo=CHECK_ID
            ) from error
        raise UnsupportedModelError(doing, got=in_brief(error), expected=expected) from error


def parse_device(device: str) -> torch.device:
    """Parse the name of a device, whether or not it is present.

    Raises:
        ConfigError: torch knows no device of this name.

    Example:
        >>> parse_device("cuda:1").index
        1
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise _no_device(device, error) from error


def check_device(device: str) -> str:
    """Return `device`; raise a ConfigError if torch does not know it or it is absent."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _no_device(device, error) from error
    return device


def _no_device(device: str, error: Exception) -> ConfigError:
    return ConfigError(
        "choosing the device",
        got=f"{device!r} ({in_brief(error)})",
        expected="cpu, cuda, cuda:1, mps …",
    )
