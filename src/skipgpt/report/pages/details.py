"""The other sections of a page: what is skipped, whether routing is healthy, how it was made."""

from __future__ import annotations

import json
from typing import Any

from skipgpt.analysis.table import Table
from skipgpt.config import BUDGET_NOUNS
from skipgpt.config.settings import flatten
from skipgpt.report.charts.curves import position_curves
from skipgpt.report.charts.run_curves import main_curves
from skipgpt.report.content import Report
from skipgpt.report.markup import (
    described,
    escaped,
    findings,
    folded,
    further,
    percent,
    sentence,
    table,
)

NO_DIAL = (
    "This checkpoint is not calibrated, so its sparsity cannot be changed: text and maps show the "
    "one that it has. <code>skipgpt.calibrate</code> calibrates it."
)


def reader(report: Report) -> str:
    """The text and its maps, which a script fills."""
    shown = min(report.shown, len(report.text))
    some = f" The first {shown:,} tokens are shown." if shown < len(report.text) else ""
    read = escaped(report.facts["read"])
    notes = "".join(f"<p>{escaped(note)}</p>" for note in report.facts.get("notes", ()))
    return f"""{notes}<p>Read: {read}.{some} The stronger a token is shaded, the more of
its modules it ran. Point at a token or a column of a map, or step through the text with the arrow
keys.</p>
<noscript><p class="warning">The text and its maps are drawn by a script, which is switched off.
All numbers are here without it.</p></noscript>
<div class="text-and-token">
<div><p class="scale" data-scale></p>
<div class="text" data-text role="listbox" aria-label="The text, by tokens" dir="auto"></div></div>
<div class="token" data-token aria-live="polite" aria-atomic="true"></div>
</div>
<div class="maps">
<figure><figcaption>Attention <span>layers from top to bottom, tokens from left to right; at the
right the share of tokens that each layer runs</span></figcaption>
<canvas data-map="attn" role="img"></canvas></figure>
<figure><figcaption>MLP <span>likewise</span></figcaption>
<canvas data-map="mlp" role="img"></canvas></figure>
<p class="note" data-grain></p>
</div>"""


def dial(report: Report, number: int = 1) -> str:
    """The slider over the stops, or why there is none; `number` makes its id unique."""
    if len(report.stops) < 2:
        return f'<p class="note">{NO_DIAL}</p>' * (not report.reach)
    return (
        f'<div class="dial"><label for="dial-{number}">Sparsity</label>'
        f'<input type="range" id="dial-{number}" data-dial min="0" max="{len(report.stops) - 1}" '
        f'step="1" value="{report.at}" autocomplete="off">'
        f'<output for="dial-{number}" data-stop></output></div>'
    )


def what_it_skips(report: Report) -> str:
    """Tables and curves below the text."""
    positions, tokens = report.table("positions"), report.table("tokens")
    redundancy = report.table("redundancy")
    own = (
        f"{percent(report.stops[report.at].asked)} of {BUDGET_NOUNS[report.budget]} asked"
        if report.reach
        else "argmax"
    )
    return (
        f"<p class='apart'>At the checkpoint's own setting, {own}, over all tokens</p>"
        f'<div class="pair"><div><h3>Layer by layer</h3>{_bars(report.table("modules"))}</div>'
        f"<div><h3>Along the sequence</h3>{position_curves(positions)}{findings(positions)}"
        f"{folded('All places', table(positions))}</div></div>"
        f"<h3>{escaped(tokens.question)}</h3>{findings(tokens)}{table(tokens, merged=True)}"
        f"<h3>{escaped(redundancy.question)}</h3>{findings(redundancy)}"
        f"{folded('All layers', table(redundancy))}"
        + further(report.of_part("skips", "modules", "positions", "tokens", "redundancy"))
    )


def how_healthy(report: Report) -> str:
    """Warnings, then the findings of the health table."""
    of = report.table("health")
    warnings = "".join(f'<p class="warning">{sentence(w)}</p>' for w in report.warnings)
    none = '<p class="fine">No warnings.</p>'
    more = further(report.of_part("health", "health"))
    return f"{warnings or none}{findings(of)}{folded('All modules', table(of))}{more}"


def how_it_was_made(report: Report) -> str:
    """Settings and training curves, as far as the folder holds them."""
    if not report.run:
        return "<p>The folder of the checkpoint does not say: it holds no run.json.</p>"
    charts = main_curves(report.run.get("metrics", []), report.checkpoint["target_sparsity"])
    return f'<div class="charts">{charts}</div>{settings_of(report.run.get("run", {}))}'


def settings_of(run: dict[str, Any]) -> str:
    """Data, command, versions and every setting from run.json."""
    config = run.get("config", {})
    rows = [("Data", escaped(", ".join(map(str, run.get("data", [])))))] if run.get("data") else []
    if run.get("command"):
        rows.append(("Command", f"<code>{escaped(' '.join(map(str, run['command'])))}</code>"))
    versions = run.get("versions", {})
    if versions:
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        rows.append(("Versions", escaped(said)))
    settings = described(
        [
            (name, f"<code>{escaped(each if isinstance(each, str) else json.dumps(each))}</code>")
            for name, each in flatten(config).items()
        ]
    )
    return described(rows) + (
        folded("All settings", f'<div class="settings">{settings}</div>') if config else ""
    )


def _bars(of: Table) -> str:
    """Keep rates as bars with their numbers."""
    rows = []
    for layer, attn, mlp in of.rows:
        cells = "".join(
            f'<td class="bar {kind}" style="--share:{rate:.4f}"><i></i>{percent(rate)}</td>'
            for kind, rate in (("attn", float(attn or 0)), ("mlp", float(mlp or 0)))
        )
        rows.append(f'<tr><th scope="row">{layer}</th>{cells}</tr>')
    size = " many" * (len(of.rows) > 16)
    return (
        f'<table class="bars{size}" data-table="{escaped(of.name)}"><thead><tr>'
        '<th scope="col">layer</th>'
        '<th scope="col">attention</th><th scope="col">MLP</th></tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><p class="note">Share of tokens that run each '
        f"module.</p>{findings(of)}"
    )
