"""The frame of every page: one file that carries its style and its script, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files

from skipgpt.report.pages.markup import escaped

STYLES = ("page.css", "reader.css")
SCRIPTS = ("data.js", "text.js", "token.js", "maps.js", "reader.js")


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        anchor: for links.
        title: a question, mostly.
        content: markup.
    """

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
    """A page of numbered sections.

    Args:
        title: of the page, plain text.
        kind: what sort of page it is, plain text.
        lead: markup below the title.
        sections: in their order.
        main: the sections as markup, where they are more than one after the other.
        footer: markup.
        script: in place of the reader's own; empty for a page without one.
        refresh: seconds after which a browser reads the page again.
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
    """A section as a landmark with its heading."""
    name = f"{section.anchor}-title"
    return (
        f'<section id="{section.anchor}" aria-labelledby="{name}"><h2 id="{name}">'
        f"<span>{number}</span>{escaped(section.title)}</h2>\n{section.content}\n</section>"
    )


def asset(name: str) -> str:
    """A file of this package's `assets`."""
    return (files("skipgpt.report") / "assets" / name).read_text(encoding="utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its `{{names}}` filled in, once: what is filled in stays as it is.

    Raises:
        KeyError: a name has no value.

    Example:
        >>> filled("<p>{{said}}</p>", {"said": "{{x}}"})
        '<p>{{x}}</p>'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)
