"""Render a report in a format and write it to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, cast, get_args

from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.report.charts.figures import to_picture
from skipgpt.report.content import Report
from skipgpt.report.markdown import several_to_markdown, to_markdown
from skipgpt.report.pages.page import to_html as page_of
from skipgpt.report.pages.side_by_side_page import to_html as page_of_several
from skipgpt.report.side_by_side import SideBySide
from skipgpt.system.atomic import staged, to_json
from skipgpt.system.folder_lock import writing_file
from skipgpt.system.stopping import NOTHING_KEPT, stoppable

Format = Literal["html", "md", "json", "png", "svg"]


def format_of(out: Path | None, asked: str | None) -> Format:
    """Return the requested format, else that of the file's suffix, else HTML.

    Raises:
        ConfigError: there is no such format.

    Example:
        >>> format_of(Path("notes/report.md"), None)
        'md'
    """
    suffix = out.suffix.lower().lstrip(".") if out else ""
    name = asked or {"htm": "html", "markdown": "md", "": "html"}.get(suffix, suffix)
    if name not in get_args(Format):
        raise ConfigError(
            "choosing the format of the report",
            got=repr(name),
            expected=", ".join(get_args(Format)),
            todo="name it with --format",
        )
    return cast("Format", name)


def rendered(report: Report | SideBySide, form: Format) -> bytes:
    """Render the content of a file.

    Raises:
        MissingExtraError: a picture needs the extra `report`.

    Example:
        Path("report.svg").write_bytes(rendered(report, "svg"))
    """
    if form == "json":
        made = to_json(report.to_dict())
    elif form == "html":
        made = page_of(report) if isinstance(report, Report) else page_of_several(report)
    elif form == "md":
        made = to_markdown(report) if isinstance(report, Report) else several_to_markdown(report)
    else:
        reports = {report.title: report} if isinstance(report, Report) else report.reports
        return to_picture(reports, form)
    return made.encode(errors="replace")  # file names may not be Unicode


@contextmanager
def kept_for(out: Path | None) -> Iterator[None]:
    """Lock an output file, if there is one, so that a conflict shows before the work, not after.

    Raises:
        CheckpointError: it is a folder, a device or a pipe, its folder cannot be written to, or
            another process is writing it.
        StoppedError: a stop was requested.
    """
    with (
        stoppable("making the report", lambda: NOTHING_KEPT),
        writing_file(_target(out)) if out else nullcontext(),
    ):
        yield


def write(out: Path, content: bytes) -> None:
    """Write a file atomically, through links; a failure leaves the old content.

    Raises:
        CheckpointError: it is a folder, a device or a pipe, or writing fails.
    """
    target = _target(out)
    with staged(target.parent) as stage:
        (stage / target.name).write_bytes(content)


def _target(out: Path) -> Path:
    """Resolve a path to a file that does not exist or can be replaced."""
    target = Path(os.path.realpath(out))
    if os.path.lexists(target) or out.exists():  # some links in /proc have no target path
        kind = "a folder" if out.is_dir() else "a device, a pipe or a link to itself"
        if not out.is_file():
            raise CheckpointError(
                f"writing to {out}",
                got=kind,
                expected="a file",
                todo="name a file with -o; --json prints the numbers",
            )
    return target
