"""Tables of text."""

from __future__ import annotations

from skipgpt.system.tables import aligned, markdown

ROWS = [["run", "ms", ""], ["dense", "4.0", ""], ["sparse", "12.25", "noisy"]]


def test_columns_are_aligned_to_the_right_unless_they_are_named() -> None:
    assert aligned(ROWS).splitlines() == [
        "   run     ms",
        " dense    4.0",
        "sparse  12.25  noisy",
    ]
    assert aligned(ROWS, left=(0, 2)).splitlines() == [
        "run        ms",
        "dense     4.0",
        "sparse  12.25  noisy",
    ]


def test_a_head_is_ruled_off_in_markdown() -> None:
    assert markdown(ROWS[:2]).splitlines() == [
        "| run | ms |  |",
        "|---|---|---|",
        "| dense | 4.0 |  |",
    ]
