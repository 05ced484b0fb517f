"""A hub data set that does not end is read as far as a run needs, in an order by a seed."""

from __future__ import annotations

import json
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import stopping_at, tiny_config, weights
from skipgpt.config import DataConfig
from skipgpt.data import load_blocks
from skipgpt.data.rows import SHUFFLED
from skipgpt.errors import ConfigError, DataError, StoppedError
from skipgpt.evaluation.source_rows import source_rows
from skipgpt.training.run import train
from texts import piped
from tiny import byte_tokenizer, tiny_routed

CONFIG = DataConfig(
    block_size=16, held_out=0.3, calibration_tokens=512, evaluation_tokens=512, seed=0
)
NEEDED = 512 / (0.3 / 2)
"""Tokens until both held-out parts are expected to be full."""


class Endless:
    """Rows as of `datasets`, which do not end; `taken` counts them."""

    def __init__(self, text: str = "Row {n}: {m} cats sat.", shift: int = 0) -> None:
        self.text, self.shift, self.taken = text, shift, 0

    def shuffle(self, seed: int, buffer_size: int) -> Endless:
        assert buffer_size == SHUFFLED
        self.shift = 1_000_000 * seed
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        n = self.shift
        while True:
            self.taken += 1
            assert self.taken < 100_000, "it is read without an end"
            yield {"text": self.text.format(n=n, m=n * n)}
            n += 1


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Endless:
    rows = Endless()
    module = types.ModuleType("datasets")
    module.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return rows


def load(config: DataConfig = CONFIG, tokens: int = 256) -> Any:
    return load_blocks(["org/endless"], byte_tokenizer(), config, train_tokens=tokens)


def test_no_more_is_read_than_training_and_what_is_held_out_need(
    hub: Endless, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "skipgpt"):
        blocks = load()
    assert hub.taken * len("Row 1: 1 cats sat.") < 3 * NEEDED
    assert blocks.train.numel() >= 256
    assert blocks.calibration.numel() >= 512 - 16
    assert blocks.held_out.numel() >= 512 - 16
    assert blocks.train.numel() < 512  # the rest of what was read is not kept
    assert f"read {hub.taken:,} documents" in caplog.text


def test_what_is_held_out_does_not_depend_on_how_much_is_trained(hub: Endless) -> None:
    little, much = load(tokens=256), load(tokens=8192)
    assert torch.equal(little.held_out, much.held_out)
    assert torch.equal(little.calibration, much.calibration)
    assert torch.equal(little.train, much.train[: len(little.train)])
    assert much.train.numel() >= 8192


def test_a_seed_fixes_the_order(hub: Endless) -> None:
    first, again = load(), load()
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.train, again.train)
    other = load(DataConfig(**{**vars(CONFIG), "seed": 1}))
    assert other.fingerprint != first.fingerprint


def test_rows_that_are_all_alike_end_in_an_error(hub: Endless) -> None:
    hub.text = "the same words in each row"
    with pytest.raises(DataError, match="of one group"):
        load()


def test_a_run_trains_on_it_and_resumes_on_the_same_rows(
    hub: Endless, base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(save_every=2)
    where = [str(base_folder), ["org/endless"]]
    train(*where, tmp_path / "whole", config)
    with stopping_at(3), pytest.raises(StoppedError):
        train(*where, tmp_path / "cut", config)
    train(*where, tmp_path / "cut", config, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert hub.taken < 2_000


def test_reading_it_to_the_end_is_refused_with_advice(hub: Endless) -> None:
    model, tokenizer = tiny_routed(), byte_tokenizer()
    with pytest.raises(ConfigError) as caught:
        source_rows(["org/endless"], tokenizer, model, CONFIG)
    assert "--max-tokens" in caught.value.todo
    rows = source_rows(["org/endless"], tokenizer, model, CONFIG, max_tokens=64)
    assert sum(map(len, rows.rows)) == 64


@pytest.mark.parametrize("name", ["rows.jsonl", "rows"])
def test_a_pipe_that_does_not_end_is_read_as_far_as_a_run_needs(tmp_path: Path, name: str) -> None:
    written = 0

    def rows() -> Iterator[bytes]:
        nonlocal written
        for written in range(100_000):
            yield json.dumps({"text": f"Row {written}: cats sat."}).encode() + b"\n"

    with piped(tmp_path / name, rows()) as pipe:
        blocks = load_blocks([str(pipe)], byte_tokenizer(), CONFIG, train_tokens=512)
    assert blocks.train.numel() >= 512
    assert written < 50_000
