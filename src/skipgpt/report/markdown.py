"""A report as Markdown: the same numbers, for terminals, diffs and wikis."""

from __future__ import annotations

import json
import re

from skipgpt.analysis.table import shown as plain
from skipgpt.cost import SENSES
from skipgpt.report.content import Report
from skipgpt.report.markup import amount, nats, percent, signed
from skipgpt.report.side_by_side import SideBySide
from skipgpt.system.tables import markdown


def to_markdown(report: Report) -> str:
    """Render all that the page says, without its charts."""
    info, cost = report.checkpoint, report.cost
    flops, ideal = cost["flops_per_token"], cost["ideal_speedup"]
    routed, dense = report.measured, report.dense
    shares = [
        (f"skipped, {s}", percent(routed.sparsity[s])) for s in SENSES if s in routed.sparsity
    ]
    if close := routed.closeness:
        shares = [
            ("KL to dense, nats per token", nats(close.kl_per_token)),
            ("top-1 agreement with dense", percent(close.agreement)),
            *shares,
        ]
    parts = [
        f"# {plain(report.title)}",
        f"{report.facts['read']}. Measured on {report.facts['date']}, "
        f"{report.facts['hardware']['device']}.",
        *report.facts.get("notes", ()),
        "## What is this checkpoint?",
        _pairs(
            ("base model", info["base"]),
            ("fingerprint", info["fingerprint"]),
            ("layers", report.layers),
            ("router", ", ".join(f"{name} {value}" for name, value in info["router"].items())),
            ("recipe", info["recipe"]),
            ("stages", ", ".join(info["stages"]) or "none"),
            ("target", report.target),
            ("sparsity range", report.reach or "not calibrated"),
        ),
        "## What does it cost, and what does it lose?",
        _pairs(
            ("dense, nats per token", nats(dense.nll_per_token)),
            ("routed, nats per token", nats(routed.nll_per_token)),
            ("excess", signed(report.numbers["excess_nll"])),
            *shares,
            ("FLOPs per token", f"{amount(flops['routed'])} of {amount(flops['dense'])}"),
            ("weights in memory", amount(cost["weight_bytes"], "B")),
            ("ideal speed-up, prefill", f"{ideal['prefill']:.2f}"),
            ("ideal speed-up, decode", f"{ideal['decode']:.2f}"),
        ),
        *(table.to_markdown() for table in report.of_part("cost")),
        "## What does it skip?",
        *(table.to_markdown() for table in report.of_part("skips")),
        "## Is routing healthy?",
        *(table.to_markdown() for table in report.of_part("health")),
        "## How was it made?",
        _made(report),
        "## The text",
        _fenced("".join(report.text.pieces[: report.shown])),
    ]
    return "\n\n".join(parts) + "\n"


def several_to_markdown(several: SideBySide) -> str:
    """Render what differs, then each report."""
    parts = [f"# {plain(several.title)}", *(table.to_markdown() for table in several.tables)]
    for name, report in several.reports.items():
        lines = to_markdown(report).splitlines()
        inner = "\n".join(f"#{line}" if line.startswith("#") else line for line in lines[1:])
        parts.append(f"## {plain(name)}\n{inner}")
    return "\n\n".join(parts) + "\n"


def _pairs(*rows: tuple[str, object]) -> str:
    return markdown([("", ""), *((name, plain(str(value))) for name, value in rows)])


def _made(report: Report) -> str:
    run = report.run.get("run")
    if not run:
        return "The folder of the checkpoint does not say: it holds no run.json."
    return _fenced(json.dumps(run, indent=2, ensure_ascii=False), "json")


def _fenced(text: str, language: str = "") -> str:
    """Fence a block so that nothing inside can end it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
