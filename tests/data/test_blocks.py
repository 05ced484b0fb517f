"""Documents become rows of tokens."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from skipgpt.config import DataConfig
from skipgpt.data import (
    Document,
    encode_stream,
    load_blocks,
    pack_blocks,
)
from skipgpt.errors import DataError
from texts import CONFIG, SENTENCE, write, write_rows
from tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def bare_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with only the special tokens given."""
    return PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, **special)


def test_bos_stands_before_every_document() -> None:
    tokenizer = bare_tokenizer(bos_token="<|endoftext|>")
    a, b = tokenizer("a").input_ids, tokenizer("bb").input_ids
    ids = encode_stream([Document("", "a", ""), Document("", "bb", "")], tokenizer).ids
    assert ids.tolist() == [0, *a, 0, *b]
    assert ids.dtype == torch.int64


def test_eos_stands_after_every_document_where_there_is_no_bos() -> None:
    tokenizer = bare_tokenizer(eos_token="<|endoftext|>")
    a, b = tokenizer("a").input_ids, tokenizer("bb").input_ids
    ids = encode_stream([Document("", "a", ""), Document("", "bb", "")], tokenizer).ids
    assert ids.tolist() == [*a, 0, *b, 0]


def test_documents_touch_where_the_tokenizer_has_neither() -> None:
    tokenizer = bare_tokenizer()
    ids = encode_stream([Document("", "a", ""), Document("", "bb", "")], tokenizer).ids
    assert ids.tolist() == tokenizer("abb").input_ids


def test_a_tokenizer_that_adds_bos_itself_does_not_double_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("a").input_ids[0] == 0
    ids = encode_stream([Document("", "a", "")] * 2, tokenizer).ids.tolist()
    assert ids == encode_stream([Document("", "a", "")] * 2, TOKENIZER).ids.tolist()
    assert ids.count(0) == 2


def test_documents_longer_than_the_window_are_encoded_in_silence(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 8
    with caplog.at_level(logging.WARNING):
        ids = encode_stream([Document("", "x" * 100, "")], tokenizer).ids
    assert len(ids) == 101
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_no_documents_give_no_tokens() -> None:
    ids = encode_stream([], TOKENIZER).ids
    assert ids.shape == (0,)
    assert ids.dtype == torch.int64


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=600),
    st.integers(2, 40),
)
@settings(deadline=None, max_examples=50)
def test_packing_keeps_the_order_and_loses_less_than_a_row(texts: list[str], size: int) -> None:
    documents = [Document("", text, "") for text in texts]
    config = DataConfig(block_size=size)
    stream = [token for text in texts for token in (0, *TOKENIZER(text).input_ids)]
    if len(stream) < size:
        with pytest.raises(DataError, match="too short"):
            pack_blocks(documents, TOKENIZER, config)
        return
    rows, _ = pack_blocks(documents, TOKENIZER, config)
    assert rows.shape == (len(stream) // size, size)
    assert rows.dtype == torch.int64
    assert rows.flatten().tolist() == stream[: rows.numel()]
    assert len(stream) - rows.numel() < size


def test_text_shorter_than_a_row_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError) as caught:
        pack_blocks([Document("", "abc", "")], TOKENIZER, DataConfig(block_size=16), "packing this")
    assert caught.value.doing == "packing this"
    assert "4 tokens" in caught.value.got
    assert "too short" in caught.value.got
    assert caught.value.expected.startswith("16")
    assert "--block-size" in caught.value.todo


def test_rows_of_the_two_sides_come_from_different_documents(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number:02}.txt", chr(ord("a") + number) * 40)
    blocks = load_blocks([str(tmp_path)], TOKENIZER, CONFIG)
    assert sum(blocks.documents) == 20
    assert blocks.train.shape == (blocks.documents[0] * 41 // 16, 16)
    letters = [
        set(part.unique().tolist()) - {0}
        for part in (blocks.train, blocks.calibration, blocks.held_out)
    ]
    assert all(letters)
    assert len(set.union(*letters)) == sum(map(len, letters))


def test_calibration_falls_back_on_training_text_where_one_document_is_held_out(
    tmp_path: Path,
) -> None:
    for number in range(3):
        write(tmp_path / f"{number:02}.txt", chr(ord("a") + number) * 40)
    blocks = load_blocks([str(tmp_path)], TOKENIZER, dataclasses.replace(CONFIG, held_out=0.01))
    assert blocks.documents == (2, 1)
    assert torch.equal(blocks.calibration, blocks.train)


def test_the_fingerprint_changes_with_the_text_and_the_settings_and_nothing_else(
    tmp_path: Path,
) -> None:
    def fingerprint(text: str, **changes: object) -> str:
        rows = [{"text": f"{text} {number} " + "x" * 40} for number in range(20)]
        path = write_rows(tmp_path / f"{text}-{len(changes)}.jsonl", *rows)
        config = dataclasses.replace(CONFIG, **changes)
        return load_blocks([str(path)], TOKENIZER, config).fingerprint

    first = fingerprint("one")
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert first == fingerprint("one")
    others = [
        fingerprint("two"),
        fingerprint("one", block_size=17),
        fingerprint("one", held_out=0.31),
    ]
    assert len({first, *others}) == 4


def test_a_lone_text_too_short_for_two_sections_is_refused_with_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "short.txt", SENTENCE * 100)
    with pytest.raises(DataError) as caught:
        load_blocks([str(path)], TOKENIZER, CONFIG)
    assert "short.txt" in caught.value.got
    assert "several files" in caught.value.todo
    assert "<|endoftext|>" in caught.value.todo


@pytest.mark.parametrize(("short", "size"), [("training", 1000), ("held-out", 100)])
def test_the_side_that_is_too_short_is_named(tmp_path: Path, short: str, size: int) -> None:
    rows = write_rows(tmp_path / "a.jsonl", *({"text": f"{n:09}"} for n in range(20)))
    with pytest.raises(DataError, match=f"packing the {short} text: got .* too short"):
        load_blocks([str(rows)], TOKENIZER, dataclasses.replace(CONFIG, block_size=size))


def test_real_text_becomes_rows_of_a_real_tokenizer(data_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data_folder / "stories260K")
    path = data_folder / "text" / "wikitext2-valid.txt"
    config = DataConfig(block_size=128, held_out=0.1, max_documents=20)
    blocks = load_blocks([str(path)], tokenizer, config)
    assert sum(blocks.documents) == 20
    assert blocks.train[0, 0] == tokenizer.bos_token_id
    bos = (blocks.train == tokenizer.bos_token_id).sum() + (
        blocks.held_out == tokenizer.bos_token_id
    ).sum()
    assert bos == 20
    assert tokenizer.decode(blocks.train[0, 1:40]).strip()[:4] == path.read_text().strip()[:4]
