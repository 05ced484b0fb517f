"""Tiny bases whose weights are held in 8 or 4 bits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from skipgpt.model.loading.bitsandbytes import KINDS
from tiny import byte_tokenizer, tiny_base

# Every layer has a multiple of 64 inputs, which 4-bit weights on a CPU need.
SIZES: dict[str, object] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
CLASSES = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
LINEARS = 3 * 7

every_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def lively() -> nn.Module:
    return tiny_base(initializer_range=0.15, **SIZES)


def save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def linear_layers(model: nn.Module, kind: str) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if type(m).__name__ == CLASSES[kind]}
