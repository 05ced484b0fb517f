"""The page of several checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from skipgpt.report.charts.curves import depth_curves, loss_curves
from skipgpt.report.content import Report
from skipgpt.report.markup import (
    datum,
    escaped,
    findings,
    folded,
    in_bytes,
    nats,
    number_table,
    percent,
    signed,
    table,
    times,
)
from skipgpt.report.pages.details import dial, how_healthy, how_it_was_made, reader
from skipgpt.report.pages.page import footer, read_together
from skipgpt.report.pages.page_frame import Section, page
from skipgpt.report.pages.summary import SENSE, what_it_is
from skipgpt.report.side_by_side import SideBySide


def to_html(several: SideBySide) -> str:
    """Render a self-contained page: numbers in columns, then each text with its own slider."""
    facts, depth = several.tables
    first = next(iter(several.reports.values()))
    sections = (
        Section("what", "What are these checkpoints?", _columns(several, what_it_is)),
        Section(
            "cost",
            "What do they cost, and what do they lose?",
            f"{_numbers(several)}{loss_curves(several.reports)}",
        ),
        Section(
            "skips",
            "What do they skip?",
            f"<h3>{escaped(depth.question)}</h3>"
            f'<div class="pair">{depth_curves(depth, list(several.reports))}'
            f"<div>{findings(depth)}{folded('All depths', table(depth))}</div></div>"
            f"{_readers(several)}",
        ),
        Section("differ", facts.question, table(facts)),
        Section("health", "Is routing healthy?", _columns(several, how_healthy)),
        Section("made", "How were they made?", _columns(several, how_it_was_made)),
    )
    return page(
        several.title,
        "skipgpt report, side by side",
        f'<p class="lead">{_lead(several)}</p>',
        sections,
        footer=footer(first),
    )


def _lead(several: SideBySide) -> str:
    each = (
        f"<b>{escaped(name)}</b> skips {percent(report.measured.sparsity['module'])} at "
        f"{signed(report.numbers['excess_nll'])} nats per token"
        for name, report in several.reports.items()
    )
    return f"{', '.join(each)} over its own dense base."


def _columns(several: SideBySide, of: Callable[[Report], str]) -> str:
    each = (
        f'<div><h3 id="{of.__name__}-{n}">{escaped(name)}</h3>{of(report)}</div>'
        for n, (name, report) in enumerate(several.reports.items(), 1)
    )
    return f'<div class="side-by-side">{"".join(each)}</div>'


def _readers(several: SideBySide) -> str:
    each = (
        f"<article><h3>{escaped(name)}</h3>"
        f"{read_together(report, dial(report, n) + reader(report))}</article>"
        for n, (name, report) in enumerate(several.reports.items(), 1)
    )
    return f'<div class="side-by-side">{"".join(each)}</div>'


def _numbers(several: SideBySide) -> str:
    """The same numbers of each, one column per checkpoint."""
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        ("dense, nats per token", "dense.nll_per_token", nats),
        ("routed, nats per token", "routed.nll_per_token", nats),
        ("excess", "excess_nll", signed),
        *(
            (f"skipped {said}", f"routed.sparsity.{sense}", percent)
            for sense, said in SENSE.items()
            if sense != "params"
            and all(sense in report.measured.sparsity for report in several.reports.values())
        ),
        ("weights in memory", "cost.weight_bytes", in_bytes),
        ("ideal speed-up, prefill", "cost.ideal_speedup.prefill", times),
        ("ideal speed-up, decode", "cost.ideal_speedup.decode", times),
    ]
    of = {name: report.numbers for name, report in several.reports.items()}
    cells = (
        (said, *(datum(of[name], key, shown, f"reports/{name}/") for name in of))
        for said, key, shown in rows
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="numbers">'
        f"{number_table(('measured', *map(escaped, of)), cells)}</div>"
        '<p class="note">Losses per token of different tokenizers cannot be compared; each excess '
        "is over the dense base of its own checkpoint.</p>"
    )
