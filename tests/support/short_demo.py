"""A demo of seconds: few steps, little text, and a base as deep as `nano` but of tiny weights."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from skipgpt.generation import generate
from skipgpt.report.gather import gather
from tiny import byte_tokenizer, tiny_base

SHORT = {
    "fit_stage.tokens": 512,
    "fit_stage.stand_in_tokens": 512,
    "fit_stage.rounds": 1,
    "router_stage.static_tokens": 64,
    "lora_stage.steps": 2,
    "batch_size": 2,
    "data.block_size": 64,
    "data.calibration_tokens": 256,
    "data.evaluation_tokens": 256,
    "data.max_documents": 12,
}


def _few_tokens(*arguments: Any, **_: object) -> Any:
    return generate(*arguments, max_new_tokens=4)


@contextmanager
def short_demo(small_nano: Path | None = None) -> Iterator[None]:
    """Let demos take a moment; with a folder of `write_small_nano` they hardly compute, either."""
    with ExitStack() as stack:
        patches: dict[str, Any] = {
            "skipgpt.demo.SETTINGS": SHORT,
            "skipgpt.demo.gather": functools.partial(gather, dial=(0.0, 0.25)),
            "skipgpt.demo.generate": _few_tokens,
            "skipgpt.evaluation.calibrate.CURVE": (0.0, 0.25, 0.5),
        }
        if small_nano is not None:
            found = SimpleNamespace(files=lambda _: small_nano)
            patches["skipgpt.model.base.resources"] = found
        for name, instead in patches.items():
            stack.enter_context(mock.patch(name, instead))
        yield


def shorten(small_nano: Path | None = None) -> None:
    """The same for the rest of this process."""
    stack = ExitStack()
    stack.enter_context(short_demo(small_nano))
    atexit.register(stack.close)  # held, since patches end where their stack is collected


def write_small_nano(folder: Path) -> Path:
    """Write a base in place of `nano`: as deep, so that its last module saves 5 % at most."""
    changes = {"num_hidden_layers": 12, "max_position_embeddings": 1024}
    tiny_base(**changes).save_pretrained(folder / "nano")
    byte_tokenizer().save_pretrained(folder / "nano")
    return folder
