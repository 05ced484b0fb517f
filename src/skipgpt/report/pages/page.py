"""The page of one checkpoint."""

from __future__ import annotations

from typing import Any

from skipgpt.report.content import Report
from skipgpt.report.markup import embedded, escaped, sentence
from skipgpt.report.pages.details import dial, how_healthy, how_it_was_made, reader, what_it_skips
from skipgpt.report.pages.page_frame import Section, numbered, page
from skipgpt.report.pages.summary import lead, what_it_costs, what_it_is

CARRIED = ("layers", "at", "budget", "dense", "dial", "text")
"""Keys of `Report.to_dict()` that the script needs; all else is static markup."""


def to_html(report: Report) -> str:
    """Render a self-contained page, for light and dark mode, print and keyboard.

    Example:
        Path("report.html").write_text(to_html(report), encoding="utf-8")
    """
    sections = (
        Section("what", "What is this checkpoint?", what_it_is(report)),
        Section("cost", "What does it cost, and what does it lose?", what_it_costs(report)),
        Section("skips", "What does it skip?", reader(report) + what_it_skips(report)),
        Section("health", "Is routing healthy?", how_healthy(report)),
        Section("made", "How was it made?", how_it_was_made(report)),
    )
    what, cost, skips, *others = (numbered(each, n) for n, each in enumerate(sections, 1))
    main = "\n".join((what, read_together(report, dial(report) + cost + skips), *others))
    return page(
        report.title,
        "skipgpt report",
        lead(report) + _first_warning(report),
        sections,
        main=main,
        footer=footer(report),
    )


def read_together(report: Report, content: str) -> str:
    """Wrap what the slider updates, together with the data for it."""
    plain = report.to_dict()
    data = embedded({name: plain[name] for name in CARRIED})
    return f'<div data-reader>{content}<script type="application/json">{data}</script></div>'


def footer(report: Report) -> str:
    """Date, hardware, versions and text of the measurement."""
    facts = report.facts
    hardware: dict[str, Any] = facts["hardware"]
    versions = ", ".join(f"{name} {hardware[name]}" for name in ("torch", "transformers"))
    return (
        f"<p>Measured on {escaped(facts['date'])}, {escaped(hardware['device'])}, "
        f"{escaped(versions)}. Text: {escaped(', '.join(facts['sources']))}. This page is one file "
        "and loads nothing.</p>"
    )


def _first_warning(report: Report) -> str:
    count = len(report.warnings)
    if not count:
        return ""
    return (
        f'<p class="warning"><a href="#health">Routing has {count} '
        f"warning{'s' * (count > 1)}</a>: {sentence(report.warnings[0])}</p>"
    )
