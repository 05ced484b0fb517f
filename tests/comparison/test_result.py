"""The tables and the picture of a comparison, from rows made by hand."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path

import pytest

from skipgpt.comparison.plot import plot
from skipgpt.comparison.result import COLUMNS, Comparison, Row

DENSE = 2.0


def row(
    method: str, flops: float, excess: float, target: float = 0.25, seed: int = 0, **more: float
) -> Row:
    """A row that skips this share of the FLOPs and loses so much more than dense."""
    shares = {"module": target, "attn": target, "mlp": target, "params": flops, "flops": flops}
    return Row(
        *(method, target, seed, shares, DENSE + excess, excess, 1000 * (1 - flops)),
        seconds=10 * seed,
        note="noted" if method == "sleb" else "",
        tokens_trained=1500 if method == "router" else 0,
        **more,
    )


def comparison(*rows: Row) -> Comparison:
    facts = {"base": "nano", "data": ["stdlib"], "dense_nll_per_token": DENSE}
    return Comparison(rows, facts)


ROUTERS = (row("router", 0.2, 0.1), row("router", 0.4, 0.5, target=0.5))


def test_seeds_of_one_method_and_budget_make_one_line() -> None:
    found = comparison(
        row("router", 0.2, 0.1, seed=0),
        row("sleb", 0.2, 0.3),
        row("router", 0.22, 0.2, seed=1),
        row("router", 0.4, 0.5, target=0.5),
        row("router", 0.24, 0.6, seed=2),
    ).lines()
    assert [(line.rows[0].method, len(line.rows)) for line in found] == [
        *(("router", 3), ("sleb", 1), ("router", 1)),
    ]
    assert found[0].excess == pytest.approx(0.3)
    assert found[0].spread == pytest.approx(0.25)  # half of 0.6 - 0.1
    assert found[0].share("flops") == pytest.approx(0.22)
    assert found[1].spread == 0


@pytest.mark.parametrize(
    ("flops", "excess", "expected"),
    [
        (0.2, 0.3, 3.0),  # where router was measured
        (0.1, 0.1, 2.0),  # half-way to dense, where router loses 0.05
        (0.3, 0.9, 3.0),  # half-way between two budgets: 0.3
        (0.2, -0.05, -0.5),
        (0.405, 1.02, 2.0),  # a little beyond the last
        (0.6, 1.0, None),
        (0.0, 0.0, None),
    ],
)
def test_every_line_is_told_in_excesses_of_router_at_its_flops(
    flops: float, excess: float, expected: float | None
) -> None:
    found = comparison(*ROUTERS, row("sleb", flops, excess))
    *_, line = found.lines()
    assert found.times_reference(line) == (None if expected is None else pytest.approx(expected))


def test_beyond_its_largest_budget_routers_dial_is_read() -> None:
    dial = (row("router (dial of 0.5)", 0.6, 1.5, 0.7), row("router (dial of 0.5)", 0.3, 9.0, 0.25))
    found = comparison(*ROUTERS, *dial, row("sleb", 0.5, 3.0))
    assert found.times_reference(found.lines()[-1]) == pytest.approx(3.0)
    assert [found.times_reference(line) for line in found.lines()[:2]] == [
        *map(pytest.approx, (1.0, 1.0))
    ]


def test_without_router_excesses_are_told_in_those_of_fit() -> None:
    fits = (row("fit", 0.2, 0.1), row("fit", 0.4, 0.5, target=0.5))
    rival = row("fisher-flops+stand_in", 0.3, 0.9)  # half-way between two budgets of fit: 0.3
    found = comparison(row("dense", 0.0, 0.0, target=0.0), *fits, rival)
    assert found.times_reference(found.lines()[-1]) == pytest.approx(3.0)
    assert "| x fit |" in found.to_markdown()
    both = comparison(*fits, *ROUTERS, rival)
    assert "| x router |" in both.to_markdown()
    assert "x fit" not in both.to_markdown()


def test_with_neither_there_is_no_column_of_ratios() -> None:
    assert " x " not in comparison(row("sleb", 0.2, 0.3)).to_markdown()


def test_seconds_saved_have_a_column_where_any_row_has_them() -> None:
    timed, untimed = row("router", 0.2, 0.1), row("sleb", 0.2, 0.3)
    assert "time" not in comparison(timed, untimed).to_markdown()
    timed = dataclasses.replace(timed, sparsity=timed.sparsity | {"time": 0.123})
    table = [
        line.strip("|").split("|") for line in comparison(timed, untimed).to_markdown().split("\n")
    ]
    place = [cell.strip() for cell in table[0]].index("time")
    assert [line[place].strip() for line in table[2:]] == ["12.3%", ""]


def test_router_itself_is_once_itself() -> None:
    found = comparison(*ROUTERS, row("router@paper", 0.2, 0.4))
    assert [found.times_reference(line) for line in found.lines()] == [
        *map(pytest.approx, (1.0, 1.0, 4.0)),
    ]


@pytest.mark.parametrize("rows", [(), (row("router", 0.3, -0.1),)], ids=["absent", "no excess"])
def test_without_an_excess_of_router_there_is_nothing_to_tell_it_in(rows: tuple[Row, ...]) -> None:
    found = comparison(*rows, row("sleb", 0.2, 0.3))
    assert found.times_reference(found.lines()[-1]) is None


def test_the_markdown_table_has_a_row_a_line() -> None:
    table = comparison(
        row("dense", 0.0, 0.0, target=0.0, kl_to_dense=0.0, agreement=1.0),
        *ROUTERS,
        row("router", 0.2, 0.2, seed=1, kl_to_dense=0.5, agreement=0.5),
        row("sleb", 0.2, 0.3, kl_to_dense=0.25, agreement=0.75),
        row("sleb", 0.2, 0.3, seed=1, kl_to_dense=0.35, agreement=0.70),
    ).to_markdown()
    head, rule, *lines = table.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *(*COLUMNS, "x router", "budget", "tokens trained", "seconds", "note"),
    ]
    assert set(rule) == {"|", "-"}
    assert {line.count("|") for line in (head, rule, *lines)} == {len(COLUMNS) + 6}
    lines = [line.replace("25.0% of modules", "¼") for line in lines]
    assert [line.replace("25.0% | 25.0% | 25.0%", "…") for line in lines] == [
        f"| dense | 2.0000 | 0.0000 | 0.0000 | 100.0% |{' 0.0% |' * 5}  |  | 0 | 0 |  |",
        "| router | 2.1500 | 0.1500 ± 0.0500 |  |  | … | 20.0% | 20.0% | 1.0 | ¼ | 1,500 | 5 |  |",
        "| router | 2.5000 | 0.5000 |  |  | 50.0% | 50.0% | 50.0% | 40.0% | 40.0% | 1.0 |"
        " 50.0% of modules | 1,500 | 0 |  |",
        "| sleb | 2.3000 | 0.3000 ± 0.0000 | 0.3000 | 72.5% | … | 20.0% | 20.0% | 2.0 | ¼ | 0 |"
        " 5 | noted |",
    ]


def test_the_terminals_table_has_the_same_cells_in_columns() -> None:
    found = comparison(*ROUTERS, row("sleb", 0.2, 0.3))
    lines = found.to_terminal().splitlines()
    assert len(lines) == 4
    for line, cells in zip(lines, found.to_markdown().splitlines()[:1], strict=False):
        assert line.split() == cells.replace("|", " ").split()
    ends = {line.index("%") for line in lines[1:]}
    assert len(ends) == 1


def test_tables_and_picture_say_what_budgets_are_shares_of(tmp_path: Path) -> None:
    rows = (row("router", 0.25, 0.1), row("sleb", 0.25, 0.3))
    found = Comparison(rows, comparison().facts | {"budget": "flops"})
    for table in (found.to_markdown(), found.to_terminal()):
        assert table.count("25.0% of FLOPs") == 2
    assert plot(found, tmp_path / "out.svg")
    picture = (tmp_path / "out.svg").read_text()
    for words in ("budgets in FLOPs", "FLOPs saved per token", "excess loss over dense"):
        assert f"<!-- {words}" in picture or words in picture


def test_a_comparison_is_plain_json() -> None:
    found = comparison(*ROUTERS)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [each["method"] for each in document["rows"]] == ["router", "router"]
    assert document["facts"] == found.facts


def test_the_picture_has_a_line_a_method_and_none_for_dense(tmp_path: Path) -> None:
    found = comparison(
        row("dense", 0.0, 0.0, target=0.0),
        *ROUTERS,
        *(row(f"method-{n}", 0.2, 0.3 + n / 10, seed=s) for n in range(12) for s in (0, 1)),
    )
    assert plot(found, tmp_path / "out.svg")
    picture = (tmp_path / "out.svg").read_text()
    names = ["router", *(f"method-{n}" for n in range(12))]
    assert all(f"<!-- {name} -->" in picture for name in names)
    assert picture.count("<!-- dense -->") == 1  # the level, not a method


def test_without_matplotlib_that_is_said_and_nothing_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.INFO, "skipgpt"):
        assert not plot(comparison(*ROUTERS), tmp_path / "out.svg")
    assert caplog.messages == ["no plot: it needs matplotlib (pip install 'skipgpt[report]')"]
    assert not (tmp_path / "out.svg").exists()
