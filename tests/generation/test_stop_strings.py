import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipgpt.generation.stop_strings import NewText, StopText
from skipgpt.model.loading.generation_settings import Ends
from tiny import byte_tokenizer

letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def _expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: the text before the first sequence that is complete."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(text=letters, stops=stops, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_text_ends_before_the_first_complete_sequence_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stop_text = StopText(stops)
    shown = "".join(stop_text.add(text[a:b]) for a, b in itertools.pairwise(places))
    assert (shown + stop_text.rest(), stop_text.found) == _expected(text, stops)


@pytest.mark.parametrize(("piece", "shown"), [("ab", "ab"), ("abE", "ab"), ("EN", ""), ("x", "x")])
def test_only_what_may_become_a_sequence_is_held_back(piece: str, shown: str) -> None:
    assert StopText(["END"]).add(piece) == shown


def read(ids: str, stops: tuple[str, ...], special: str = "<|im_end|>") -> tuple[str, bool]:
    """The text of letters and, for `!`, a special token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [special]})
    text = NewText(tokenizer, (), Ends((), stops))
    shown = ""
    for letter in ids:
        token = special if letter == "!" else letter
        if not text.found:
            shown += text.add(tokenizer(token)["input_ids"][0])
    return shown + text.rest(), text.found


@pytest.mark.parametrize(
    ("ids", "stop", "shown", "found"),
    [
        ("abc!d", "c<|im_end|>", "ab", True),
        ("abc!d", "<|im_end|>d", "abc", True),
        ("abc!d", "<|im_end|>e", "abcd", False),
        ("abc!d", "im_end", "abcd", False),  # no letter of a special token is text
        ("ab!c!d", "c<|im_end|>d", "ab", True),
    ],
)
def test_a_stop_may_hold_a_special_token_that_is_never_shown(
    ids: str, stop: str, shown: str, found: bool
) -> None:
    assert read(ids, (stop,)) == (shown, found)
