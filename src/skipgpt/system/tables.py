"""Rows of cells as a table of text, for a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    r"""Align columns to the right, or those of these numbers to the left.

    Example:
        >>> aligned([["run", "ms"], ["dense", "4"]], left=[0])
        'run    ms\ndense   4'
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    r"""Render a head and rows as Markdown; cells are taken as they are.

    Example:
        >>> markdown([["run", "ms"], ["dense", "4"]])
        '| run | ms |\n|---|---|\n| dense | 4 |'
    """
    head, *lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *lines])
