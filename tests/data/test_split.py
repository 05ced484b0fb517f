"""Which documents are held out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipgpt.data import (
    Document,
    split_documents,
)
from skipgpt.errors import DataError


def documents_of(groups: list[str]) -> list[Document]:
    return [Document(f"{n}", f"text {n}", group) for n, group in enumerate(groups)]


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=2).filter(
        lambda groups: len(set(groups)) > 1
    ),
    st.floats(0.01, 0.99),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_a_split_loses_nothing_keeps_groups_together_and_ignores_order(
    groups: list[str], share: float, random: object
) -> None:
    documents = documents_of(groups)
    train, held_out = split_documents(documents, share)
    assert train
    assert held_out
    assert sorted(train + held_out, key=documents.index) == documents
    assert train == sorted(train, key=documents.index)
    assert held_out == sorted(held_out, key=documents.index)
    assert not {d.group for d in train} & {d.group for d in held_out}
    random.shuffle(documents)  # type: ignore[attr-defined]
    again, held_again = split_documents(documents, share)
    assert set(again) == set(train)
    assert set(held_again) == set(held_out)


@given(st.integers(2, 300), st.integers(2, 300), st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=30)
def test_more_documents_move_none_of_the_earlier_ones(few: int, more: int, share: float) -> None:
    documents = documents_of([f"group {n}" for n in range(few + more)])
    early, late = split_documents(documents[:few], share), split_documents(documents, share)
    moved = sum(len(set(before) - set(after)) for before, after in zip(early, late, strict=True))
    # The one group that was moved to fill an empty side may move back.
    assert moved <= 1


def test_the_split_is_the_same_on_every_machine() -> None:
    """The embedded model was trained on one side of this split: it must never change."""
    documents = documents_of(["json", "argparse", "queue", "struct", "tasks", "decoder"])
    _, held_out = split_documents(documents, 0.05)
    assert [document.group for document in held_out] == ["json", "queue", "struct", "tasks"]


def test_the_share_held_out_is_about_the_share_asked_for() -> None:
    documents = documents_of([f"group {n}" for n in range(4000)])
    _, held_out = split_documents(documents, 0.25)
    # Binomial: the standard deviation is 27 of 4000.
    assert abs(len(held_out) - 1000) < 5 * 27


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_two_groups_are_enough_for_both_sides(share: float) -> None:
    train, held_out = split_documents(documents_of(["a", "b", "a"]), share)
    assert {len(train), len(held_out)} == {1, 2}


@pytest.mark.parametrize(
    ("groups", "got"),
    [
        ([], "no document"),
        (["a"], "only one document, '0'"),
        (["a", "a", "a"], "3 documents of one group"),
    ],
)
def test_fewer_than_two_groups_cannot_be_split(groups: list[str], got: str) -> None:
    with pytest.raises(DataError) as caught:
        split_documents(documents_of(groups), 0.5)
    assert caught.value.got == got
    assert "two or more" in caught.value.expected
    assert "give several files" in caught.value.todo
