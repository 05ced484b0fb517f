"""Several checkpoints on the same text, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipgpt.analysis import Table, depth_profiles, side_by_side
from skipgpt.config import DataConfig
from skipgpt.errors import ConfigError
from skipgpt.report.content import FORMAT, Report
from skipgpt.report.gather import gather, names_of


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Reports of checkpoints on the same text; their bases, tokenizers and depths may differ.

    Attributes:
        title: title of the page.
        reports: by checkpoint name, in the order given.
        tables: what differs between them.
    """

    title: str
    reports: dict[str, Report]
    tables: tuple[Table, ...]

    @classmethod
    def of(cls, title: str, reports: dict[str, Report]) -> SideBySide:
        """Compare reports that exist already.

        Raises:
            ConfigError: fewer than two.
        """
        if len(reports) < 2:
            raise ConfigError(
                "putting checkpoints side by side", got=f"{len(reports)}", expected="two or more"
            )
        facts = side_by_side({name: report.tables for name, report in reports.items()})
        depth = depth_profiles({name: report.trace for name, report in reports.items()})
        return cls(title, reports, (facts, depth))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of all checkpoints."""
        return tuple(
            f"{name}: {warning}"
            for name, report in self.reports.items()
            for warning in report.warnings
        )

    def __str__(self) -> str:
        """Summarise for a terminal."""
        return "\n".join(f"{name}: {report}" for name, report in self.reports.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "format": FORMAT,
            "title": self.title,
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
            "tables": {table.name: table.to_dict() for table in self.tables},
            "warnings": list(self.warnings),
        }


def gather_several(
    folders: Sequence[str],
    sources: Sequence[str],
    config: DataConfig,
    **options: Any,
) -> SideBySide:
    """Measure two checkpoints or more one after the other on the same text, as `gather` does one.

    Raises:
        ConfigError: fewer than two folders.
        SkipGPTError: see `gather`.
    """
    reports = {
        name: gather(folder, sources, config, **options)
        for name, folder in zip(names(folders), folders, strict=True)
    }
    return SideBySide.of(f"{' and '.join(reports)} on {names_of(sources)}", reports)


def names(folders: Sequence[str]) -> list[str]:
    """Return the shortest unique name of each folder.

    A folder that is given more than once is numbered.

    Example:
        >>> names(["out/a/checkpoint", "out/b/checkpoint"]), names(["out/a", "out/a"])
        (['a/checkpoint', 'b/checkpoint'], ['a (1)', 'a (2)'])
    """
    parts = [Path(folder).absolute().parts for folder in folders]
    different = set(parts)
    count = 1
    while len({each[-count:] for each in different}) < len(different):
        count += 1
    short = ["/".join(each[-count:]) for each in parts]
    return [
        f"{name} ({short[: n + 1].count(name)})" if short.count(name) > 1 else name
        for n, name in enumerate(short)
    ]
