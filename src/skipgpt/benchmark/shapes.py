"""Llama shapes to benchmark with random weights; nothing is downloaded."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.model.base import base_config


def _llama(
    width: int, mlp: int, layers: int, heads: int, key_heads: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": width // heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 16384,
    }


SHAPES: dict[str, dict[str, Any]] = {
    # For tests of the benchmark itself.
    "llama-tiny": _llama(32, 88, 2, 4, 2, 256, tied=False),
    # Small enough for two cores.
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, tied=True),
    "llama-160m": _llama(1024, 2816, 12, 16, 4, 8192, tied=False),
    "llama-350m": _llama(1024, 2816, 28, 16, 4, 8192, tied=False),
    # As published.
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, tied=True),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8, 128256, tied=True),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, tied=False),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256, tied=False),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40, 32000, tied=False),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256, tied=False),
    "llama-3.1-405b": _llama(16384, 53248, 126, 128, 8, 128256, tied=False),
}


def shape_config(name: str) -> Any:
    """Return the transformers config of a named shape; a ConfigError if there is none."""
    from transformers import LlamaConfig

    if name not in SHAPES:
        raise ConfigError(
            "choosing the shape", got=repr(name), expected="one of " + ", ".join(SHAPES)
        )
    return LlamaConfig(**SHAPES[name])


def shape_or_base(name: str) -> Any:
    """Return the transformers config of a named shape or a base model, without reading weights.

    Raises:
        UnsupportedModelError: it is neither; the message names similar shapes.
    """
    if name in SHAPES:
        return shape_config(name)
    try:
        return base_config(name)
    except UnsupportedModelError as error:
        last = "" if Path(name).exists() else name.rsplit("/", 1)[-1].lower()
        near = difflib.get_close_matches(last, SHAPES, n=3, cutoff=0.6)
        todo = f"shapes of a like name: {', '.join(near)}" if near else error.todo
        raise UnsupportedModelError(
            error.doing, got=error.got, expected=error.expected, todo=todo
        ) from error
