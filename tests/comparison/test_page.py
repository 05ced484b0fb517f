"""Sections of a page that experiments write, and write again."""

from __future__ import annotations

from pathlib import Path

import pytest

from results_page import write_section
from skipgpt.comparison.result import Comparison, Row
from skipgpt.config import recipe
from skipgpt.config.settings import to_dict
from skipgpt.errors import ConfigError

SHARES = dict.fromkeys(("module", "attn", "mlp", "params", "flops"), 0.25)


def comparison(*methods: str, excess: float = 0.5, stand_ins: float = 0.1) -> Comparison:
    rows = (Row(name, 0.25, 0, SHARES, 2 + excess, excess, 750.0) for name in methods)
    facts = {
        "settings": to_dict(recipe("default")),
        "tokens": 1234,
        "dense_nll_per_token": 2.0,
        "overhead": {"routers": 0.0123, "stand_ins": stand_ins},
        "date": "2026-01-02",
        "hardware": {"device": "a machine", "threads": 3, "torch": "2.13.0"},
    }
    return Comparison(tuple(rows), facts)


def test_a_section_has_the_command_the_table_and_what_the_methods_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    found = comparison("router", "sleb+lora", "mod-d (causal)", "router:router.stand_in=0")
    write_section(page, "one", "A title", "python run.py one", found)
    text = page.read_text()
    assert "## A title\n\n    python run.py one\n" in text
    assert found.to_markdown() in text
    assert "200 router steps and 1000 LoRA steps of 16 x 256 tokens; 1,234 held-out" in text
    assert "`router`: a router for each module, fitted, then trained; base frozen (RT); `sl" in text
    assert text.count("`router`: ") == text.count("`mod-d`: ") == 1


def test_a_section_says_when_and_where_and_what_routing_adds(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write_section(page, "one", "one", "command", comparison("router"))
    where = "2026-01-02, a machine, 3 threads, torch 2.13.0. Routers add 1.23% to the parameters"
    assert f"{where} that a token uses, stand-ins at most 10.0%.\n" in page.read_text()
    write_section(page, "one", "one", "command", comparison("router", stand_ins=0))
    assert f"{where} that a token uses.\n" in page.read_text()


def test_a_section_is_replaced_where_it_stands_and_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Results\n")
    for name in ("one", "two"):
        write_section(page, name, name, "command", comparison("router"))
    page.write_text(page.read_text() + "\nThe end.\n")
    before = page.read_text()
    write_section(page, "one", "one", "command", comparison("router", excess=0.75))
    assert page.read_text() == before.replace("2.5000 | 0.5000", "2.7500 | 0.7500", 1)


def test_a_section_without_an_end_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- comparison: one -->\nmine\n")
    with pytest.raises(ConfigError, match="put the end marker back by hand; nothing was changed"):
        write_section(page, "one", "one", "command", comparison("router"))
    assert page.read_text() == "<!-- comparison: one -->\nmine\n"
    page.write_text(page.read_text() + "<!-- end: one -->")
    write_section(page, "one", "one", "command", comparison("router"))
    assert comparison("router").to_markdown() in page.read_text()
