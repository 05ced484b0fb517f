"""The page for everybody: by keyboard, by ear, in the dark, on a phone and on paper."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from browser import DOWN, END, FOCUSED, HOME, LEFT, RIGHT, TAB, UP, opened
from made_report import DIAL, WORDS, made, warned
from skipgpt.report.pages.page import to_html
from skipgpt.report.pages.side_by_side_page import to_html as side_by_side_html
from skipgpt.report.side_by_side import SideBySide


def test_the_text_is_walked_with_the_keyboard(tmp_path: Path) -> None:
    page = opened(to_html(made(WORDS * 40, row=500)), tmp_path)
    last = len(WORDS) * 40 - 1
    page.run("document.querySelector('[data-dial]').focus()")
    while page.run(FOCUSED) is None:  # what lies between the dial and the text takes the focus, too
        page.press(TAB)
    assert page.run(FOCUSED) == 0
    for key, there in ((RIGHT, 1), (RIGHT, 2), (LEFT, 1), (END, last), (RIGHT, last), (HOME, 0)):
        page.press(key)
        assert page.run(FOCUSED) == there
        assert len(page.all("[role=option][tabindex='0']")) == 1
        assert len(page.all("[role=option][aria-selected='true']")) == 1
    page.press(LEFT)
    assert page.run(FOCUSED) == 0
    page.press(DOWN)
    below = page.run(FOCUSED)
    assert below > 1
    tops = "return arguments[0].map((n) => document.querySelectorAll('[role=option]')[n].offsetTop)"
    first, second = page.run(tops, [0, below])
    assert second > first
    page.press(UP)
    assert page.run(FOCUSED) == 0


def test_the_focus_can_be_seen(tmp_path: Path) -> None:
    page = opened(to_html(made()), tmp_path)
    page.press(TAB)  # a window that no key was pressed in may have no focus at all
    page.run("document.querySelector('nav a').focus({ focusVisible: true })")
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.run("document.querySelector('[role=option]').focus()")
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_dial_is_a_labelled_range_that_keys_turn(tmp_path: Path) -> None:
    page = opened(to_html(made()), tmp_path)
    dial = page.one("[data-dial]")
    assert dial.get_attribute("type") == "range"
    assert dial.accessible_name == "Sparsity"
    assert page.one("output").get_attribute("for") == dial.get_attribute("id")
    page.run("arguments[0].focus()", dial)
    page.press(RIGHT)
    assert dial.get_attribute("value") == "2"
    assert dial.get_attribute("aria-valuetext").startswith(f"{100 * DIAL[2]:.1f}% of modules asked")
    page.press(HOME)
    assert dial.get_attribute("value") == "0"
    assert page.one("[data-token] [data-value=ran]").text == "6 of 6 modules"
    page.all(".dot")[3].click()
    assert dial.get_attribute("value") == "3"


def test_landmarks_headings_and_names_are_there(tmp_path: Path) -> None:
    page = opened(to_html(warned(made(), "half of it is fixed")), tmp_path)
    for landmark in ("header", "nav[aria-label]", "main", "footer", "h1", "[aria-live=polite]"):
        page.one(landmark)
    assert page.run("return document.documentElement.lang") == "en"
    levels = page.run(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map((h) => +h.tagName[1])"
    )
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert [text[1:] for text in page.texts("h2")] == [
        "What is this checkpoint?",
        "What does it cost, and what does it lose?",
        "What does it skip?",
        "Is routing healthy?",
        "How was it made?",
    ]
    page.run("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    for region in page.all("section, [role=listbox], [role=img], [role=region], [data-dial]"):
        assert region.accessible_name
    ids = page.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    links = page.run("return [...document.querySelectorAll('a')].map((a) => a.hash.slice(1))")
    assert set(links) <= set(ids)
    health = page.one("#health").text
    assert health.index("half of it is fixed") < health.index("always on")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_can_be_read_on_every_shade(tmp_path: Path, scheme: str) -> None:
    page = opened(to_html(made()), tmp_path, scheme=scheme)
    colours = page.run(
        """
        const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const seen = (colour) => {
          pen.fillStyle = colour;
          pen.fillRect(0, 0, 1, 1);
          return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const shades = [...document.querySelectorAll(".steps i")];
        return [seen(getComputedStyle(document.body).color),
          ...shades.map((shade) => seen(getComputedStyle(shade).backgroundColor))];
        """
    )
    ink, *shades = (_luminance(colour) for colour in colours)
    assert len(shades) == 11
    assert all(_contrast(ink, shade) >= 4.5 for shade in shades)
    steps = [_contrast(one, other) for one, other in pairwise(shades)]
    assert min(steps) > 1  # lightness alone tells every shade from the next
    assert shades == sorted(shades, reverse=scheme == "light")


def _luminance(colour: list[int]) -> float:
    """Of sRGB, as WCAG 2 defines it."""
    parts = (c / 255 for c in colour)
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


LONG = ["supercalifragilistic" * 20, *WORDS * 20]


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_page_does_not_scroll_sideways(tmp_path: Path, width: int) -> None:
    report = made(LONG, layers=32, title="a-very-long-name-without-a-break" * 4)
    pages = [
        to_html(report),
        side_by_side_html(SideBySide.of("two", {"a" * 60: report, "b": made()})),
    ]
    for html in pages:
        page = opened(html, tmp_path, width=width)
        page.run("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        assert page.run("return document.documentElement.scrollWidth") <= width


def test_on_paper_all_of_the_text_is_there_in_its_colours(tmp_path: Path) -> None:
    page = opened(to_html(made(WORDS * 200)), tmp_path, media="print", scheme="dark")
    text = "const t = document.querySelector('[data-text]'); return "
    assert page.run(text + "t.scrollHeight <= t.clientHeight + 1")
    assert page.run(text + "getComputedStyle(t.querySelector('span')).printColorAdjust") == "exact"
    assert (
        page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert page.tool("Page.printToPDF")["data"]


def test_without_scripts_the_numbers_are_there_and_the_rest_is_said(tmp_path: Path) -> None:
    report = made()
    page = opened(to_html(report), tmp_path, scripts=False)
    text = page.one("main").text
    assert "drawn by a script, which is switched off" in text
    assert f"{report.measured.nll_per_token:.3f}" in text
    assert f"{100 * report.measured.sparsity['module']:.1f}%" in text
