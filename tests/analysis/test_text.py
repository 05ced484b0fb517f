import pytest
import torch

from skipgpt.analysis.trace import text_of
from skipgpt.data.detokenize import token_texts
from tiny import byte_tokenizer


@pytest.mark.parametrize("written", ["plain words", "naïve café — 日本語 🙂!", "", "a\n\tb"])
def test_the_pieces_are_the_text(written: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    pieces = token_texts(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == written


def test_a_character_stands_at_the_token_that_completes_it() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("é🙂x", add_special_tokens=False)["input_ids"]
    assert token_texts(ids, tokenizer) == ["", "é", "", "", "", "🙂", "x"]


def test_bytes_that_make_no_character_are_shown_as_such_and_swallow_nothing() -> None:
    tokenizer = byte_tokenizer()
    first = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    after = tokenizer("abcdefghijkl", add_special_tokens=False)["input_ids"]
    pieces = token_texts([*first * 20, *after, *first], tokenizer)
    assert "".join(pieces).replace("\N{REPLACEMENT CHARACTER}", "") == "abcdefghijkl"
    assert pieces[-1] == "\N{REPLACEMENT CHARACTER}"


def test_words_keep_the_space_that_a_sentencepiece_tokenizer_puts_before_them(
    data_folder,
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data_folder / "stories260K")
    written = "once upon a time, there was a dog."
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(ids, tokenizer)).strip() == written


def test_rows_and_places_are_those_it_was_read_in() -> None:
    text = text_of([torch.tensor([5, 6, 7]), torch.tensor([8, 9])], byte_tokenizer())
    assert text.row.tolist() == [0, 0, 0, 1, 1]
    assert text.position.tolist() == [0, 1, 2, 0, 1]
    assert text.ids.tolist() == [5, 6, 7, 8, 9]
    assert len(text) == 5
