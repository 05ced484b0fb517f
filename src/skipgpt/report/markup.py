"""Pieces of a page: escaped text, numbers that can be checked, tables, embedded data."""

from __future__ import annotations

import functools
import html
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from skipgpt.analysis.table import Cell, Table

SHARES = ("keep rate", "sparsity", "asked", "neighbours agree", "agreement", "by chance", "%")
"""Columns whose name contains one of these hold shares and are shown in per cent."""


def escaped(text: object) -> str:
    """Escape text for the content or an attribute of an element."""
    return html.escape(str(text), quote=True)


def sentence(text: str) -> str:
    """Escape a sentence of an analysis, with `commands` marked as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escaped(text))


def embedded(value: Any) -> str:
    r"""Encode JSON so that no HTML parser takes it for markup.

    Example:
        >>> embedded("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def datum(numbers: Any, key: str, shown: Callable[[float], str], prefix: str = "") -> str:
    """Mark up a number with its exact value and its key in the JSON, names joined by dots.

    Where the JSON holds several reports, `prefix` stands before the key.
    """
    value = functools.reduce(operator.getitem, key.split("."), numbers)
    return (
        f'<data data-key="{escaped(prefix + key)}" value="{value!r}">{escaped(shown(value))}</data>'
    )


def percent(share: float) -> str:
    """Format a share in per cent with one decimal."""
    return f"{share:z.1%}"


def nats(value: float) -> str:
    """Format a loss in nats."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """Format a difference of losses, with a typographic minus sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def times(value: float) -> str:
    """Format a speed-up."""
    return f"{value:.2f}x"


def amount(value: float, unit: str = "") -> str:
    """Format a large number with three significant digits.

    Example:
        >>> amount(16446272, "B")
        '16.4 MB'
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            digits = max(0, 2 - int(math.log10(value / size)))
            return f"{value / size:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def in_bytes(value: float) -> str:
    """Format a number of bytes."""
    return amount(value, "B")


def cell(column: str, value: Cell) -> str:
    """Format a cell of a table."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "\N{EN DASH}"
    if isinstance(value, str):
        return value
    if any(name in column for name in SHARES):
        return percent(value)
    if isinstance(value, int):
        return f"{value:,}"
    if column == "excess":
        return signed(value)
    return f"{value:z.3f}"


def table(
    of: Table,
    *,
    marked: Sequence[int] = (),
    names: dict[int, str] | None = None,
    merged: bool = False,
) -> str:
    """Render a table.

    Rows may be marked, by index, and their first cells replaced by names; where rows are merged, a
    first cell is shown only where it differs from the one above.
    """
    numeric = [
        ' class="n"' if n and not any(isinstance(row[n], str) for row in of.rows) else ""
        for n in range(len(of.columns))
    ]
    head = "".join(
        f'<th scope="col"{kind}>{escaped(name)}</th>'
        for kind, name in zip(numeric, of.columns, strict=True)
    )
    rows, before = [], None
    for number, row in enumerate(of.rows):
        first, *others = map(cell, of.columns, row)
        first = (names or {}).get(number, first)
        again = ' class="again"' if merged and row[0] == before else ""
        before = row[0]
        cells = "".join(
            f"<td{kind}>{escaped(shown)}</td>"
            for kind, shown in zip(numeric[1:], others, strict=True)
        )
        kind = ' class="marked"' if number in marked else ""
        rows.append(f'<tr{kind}><th scope="row"{again}>{escaped(first)}</th>{cells}</tr>')
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escaped(of.name)}">'
        f'<table data-table="{escaped(of.name)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def number_table(head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Render a table of numbers; its head and its rows are markup, names first."""
    first, *others = head
    columns = "".join(f'<th scope="col" class="n">{name}</th>' for name in others)
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f'<td class="n">{each}</td>' for each in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        f'<table><thead><tr><th scope="col">{first}</th>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def findings(of: Table) -> str:
    """Render the findings of a table, one paragraph each."""
    return "".join(f"<p>{sentence(each)}</p>" for each in of.findings)


def folded(summary: str, content: str) -> str:
    """Render a collapsible section."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"


def further(tables: Iterable[Table]) -> str:
    """Render tables that have no place of their own: question, findings, folded rows."""
    return "".join(
        f"<h3>{escaped(of.question)}</h3>{findings(of)}{folded('All rows', table(of))}"
        for of in tables
    )


def described(rows: Sequence[tuple[str, str]]) -> str:
    """Render a description list of plain names and values that are markup."""
    each = "".join(f"<div><dt>{escaped(name)}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<dl>{each}</dl>"
