"""The frame of every page: one self-contained file with its style and script inline."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files

from skipgpt.report.markup import escaped

STYLES = ("page.css", "reader.css")
SCRIPTS = ("data.js", "text.js", "token.js", "maps.js", "reader.js")


@dataclass(frozen=True)
class Section:
    """A part of a page: id for links, heading (mostly a question) and markup."""

    anchor: str
    title: str
    content: str


def page(
    title: str,
    kind: str,
    lead: str,
    sections: Sequence[Section],
    *,
    main: str | None = None,
    footer: str = "",
    script: str | None = None,
    refresh: int | None = None,
) -> str:
    """Render a page of numbered sections.

    Args:
        title: title of the page, plain text.
        kind: sort of page, plain text.
        lead: markup below the title.
        sections: sections in order.
        main: markup of the sections, where it is not one after the other.
        footer: markup.
        script: replaces the default script; empty for none.
        refresh: seconds after which the browser reloads the page.
    """
    code = "".join(map(asset, SCRIPTS)) if script is None else script
    code = f'"use strict";\n{code}' if code else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'" if code else "script-src 'none'"
    return filled(
        asset("page.html"),
        {
            "policy": f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {allowed}",
            "version": escaped(version("skipgpt")),
            "refresh": f'<meta http-equiv="refresh" content="{refresh}">' if refresh else "",
            "title": escaped(title),
            "kind": escaped(kind),
            "style": "".join(map(asset, STYLES)),
            "lead": lead,
            "contents": "".join(
                f'<li><a href="#{s.anchor}">{escaped(s.title)}</a></li>' for s in sections
            ),
            "main": main or "\n".join(numbered(s, n) for n, s in enumerate(sections, 1)),
            "footer": footer,
            "script": code,
        },
    )


def numbered(section: Section, number: int) -> str:
    """Render a section as a landmark with its heading."""
    name = f"{section.anchor}-title"
    return (
        f'<section id="{section.anchor}" aria-labelledby="{name}"><h2 id="{name}">'
        f"<span>{number}</span>{escaped(section.title)}</h2>\n{section.content}\n</section>"
    )


def asset(name: str) -> str:
    """Read a file of this package's `assets`."""
    return (files("skipgpt.report") / "assets" / name).read_text(encoding="utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Fill in the `{{names}}` of a template once; values are not expanded again.

    Raises:
        KeyError: a name has no value.

    Example:
        >>> filled("<p>{{said}}</p>", {"said": "{{x}}"})
        '<p>{{x}}</p>'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)
