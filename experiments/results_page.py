"""Writes a comparison as a section of a Markdown page, between markers that a later run finds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from skipgpt.comparison.method import KINDS
from skipgpt.comparison.result import Comparison
from skipgpt.errors import ConfigError
from skipgpt.system.atomic import staged


def write_section(page: Path, name: str, title: str, command: str, comparison: Comparison) -> None:
    """Write a comparison into a Markdown page: over the section of this name, or at the end.

    The section has a title, the command that makes the table, and the table.

    Raises:
        ConfigError: the section of this name has no end marker.
    """
    begin, end = f"<!-- comparison: {name} -->", f"<!-- end: {name} -->"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    section = "\n".join([begin, *_lines(title, command, comparison), end])
    before, found, rest = text.partition(begin)
    if found:
        _, closed, after = rest.partition(end)
        if not closed:
            raise ConfigError(
                f"writing the section {name} into {page}",
                got=f"a beginning, {begin}, without an end",
                expected=end,
                todo="put the end marker back by hand; nothing was changed",
            )
        text = before + section + after
    else:
        text = text.rstrip("\n") + "\n\n" * bool(text) + section + "\n"
    with staged(page.parent) as stage:
        (stage / page.name).write_text(text, encoding="utf-8")


def _lines(title: str, command: str, comparison: Comparison) -> list[str]:
    facts = comparison.facts
    run = facts["settings"]
    steps = [f"{run['router_stage']['steps']} router steps"]
    if any("lora" in row.method or row.method.startswith("joint") for row in comparison.rows):
        steps.append(f"{run['lora_stage']['steps']} LoRA steps")
    kinds = dict.fromkeys(re.split(r"[+@: ]", row.method)[0] for row in comparison.rows)
    seeds = sorted({row.seed for row in comparison.rows})
    return [
        f"## {title}",
        "",
        f"    {command}",
        "",
        _where(facts),
        "",
        f"{' and '.join(steps)} of {run['batch_size']} x {run['data']['block_size']} tokens; "
        f"{facts['tokens']:,} held-out tokens; seeds {', '.join(map(str, seeds))}, ± half their "
        f"range. Dense: {facts['dense_nll_per_token']:.4f} nats per token. Budgets are shares of "
        f"{comparison.unit}. *KL*: KL(dense || method), nats per token; *agreement*: share of "
        f"tokens with the same most likely next one.{_ratio(comparison.reference)}",
        "",
        comparison.to_markdown(),
        "",
        "; ".join(f"`{kind}`: {KINDS[kind]}" for kind in kinds) + ".",
    ]


def _ratio(reference: str | None) -> str:
    """Explain the column of ratios, where there is one."""
    if reference is None:
        return ""
    return f" *x {reference}*: excess in units of `{reference}`'s at the same FLOPs."


def _where(facts: dict[str, Any]) -> str:
    """Return date, hardware and the parameters that routing adds, in words."""
    hardware, added = facts["hardware"], facts["overhead"]
    count = hardware.get("threads", 0)
    threads = f", {count} thread{'s' * (count > 1)}" if count else ""
    text = f"{facts['date']}, {hardware['device']}{threads}, torch {hardware['torch']}. "
    text += f"Routers add {added['routers']:.2%} to the parameters that a token uses"
    return text + (
        f", stand-ins at most {added['stand_ins']:.1%}." * bool(added["stand_ins"]) or "."
    )
