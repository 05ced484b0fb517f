"""The page of several checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from skipgpt.report.charts.curves import depth_curves, loss_curves
from skipgpt.report.content import Report
from skipgpt.report.pages.details import dial, how_healthy, how_it_was_made, reader
from skipgpt.report.pages.markup import (
    amount,
    datum,
    escaped,
    findings,
    folded,
    nats,
    percent,
    signed,
    table,
)
from skipgpt.report.pages.page import footer, read_together
from skipgpt.report.pages.page_frame import Section, page
from skipgpt.report.pages.summary import what_it_is
from skipgpt.report.side_by_side import SideBySide

Number = tuple[str, str, Callable[[Report], float], Callable[[float], str]]


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
        f"{signed(report.measured.nll_per_token - report.dense.nll_per_token)} nats per token"
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
    rows: list[Number] = [
        ("dense, nats per token", "dense.nll_per_token", lambda r: r.dense.nll_per_token, nats),
        (
            "routed, nats per token",
            "routed.nll_per_token",
            lambda r: r.measured.nll_per_token,
            nats,
        ),
        (
            "excess",
            "excess_nll",
            lambda r: r.measured.nll_per_token - r.dense.nll_per_token,
            signed,
        ),
        *(
            (f"skipped {said}", f"routed.sparsity.{sense}", _sense(sense), percent)
            for sense, said in (
                ("module", "of all modules"),
                ("attn", "of attention"),
                ("mlp", "of MLPs"),
                ("flops", "of FLOPs"),
            )
        ),
        ("weights in memory", "cost.weight_bytes", lambda r: r.cost["weight_bytes"], _bytes),
        ("ideal speed-up, prefill", "cost.ideal_speedup.prefill", _ideal("prefill"), _times),
        ("ideal speed-up, decode", "cost.ideal_speedup.decode", _ideal("decode"), _times),
    ]
    head = "".join(f'<th scope="col" class="n">{escaped(name)}</th>' for name in several.reports)
    body = "".join(
        f'<tr><th scope="row">{said}</th>'
        + "".join(
            f'<td class="n">{datum(f"reports/{name}/{key}", of(report), shown(of(report)))}</td>'
            for name, report in several.reports.items()
        )
        + "</tr>"
        for said, key, of, shown in rows
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="numbers"><table><thead><tr>'
        f'<th scope="col">measured</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="note">Losses per token of different tokenizers cannot be compared; each excess '
        "is over the dense base of its own checkpoint.</p>"
    )


def _sense(sense: str) -> Callable[[Report], float]:
    return lambda report: report.measured.sparsity[sense]


def _ideal(phase: str) -> Callable[[Report], float]:
    return lambda report: float(report.cost["ideal_speedup"][phase])


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _bytes(value: float) -> str:
    return amount(value, "B")
