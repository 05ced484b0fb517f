"""Write docs/settings.md from the docstrings and recipes of the settings.

python scripts/write_settings_docs.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skipgpt.config import TrainConfig, recipe

INTRODUCTION = """# Settings

Written by `scripts/write_settings_docs.py` from the docstrings of the settings. What they mean for
a run is explained in [training.md](training.md) and [how-it-works.md](how-it-works.md).

Recipe `paper` holds the paper's numbers; what the paper does not state is taken from the authors'
code (weight decay, clipping, random start) or is ours. Where both recipes agree, the value stands
once. A setting of a stage that a run does not have changes nothing, except
`router_stage.stand_in_rate`, which stage `lora` uses, too, `router_stage.static_tokens`, which
`compare` and `demo` use, and `router_stage.fit_tokens`, which counts in how much text is read.
"""


def attributes(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field, on one line."""
    said = (inspect.getdoc(kind) or "").partition("Attributes:")[2]
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", said, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def rows(kind: type, paper: Any, default: Any, prefix: str = "") -> Iterator[str]:
    """The lines of the table for one dataclass: its own fields first, then nested ones."""
    hints, meanings = typing.get_type_hints(kind), attributes(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    nested = [name for name in names if dataclasses.is_dataclass(hints[name])]
    for name in [name for name in names if name not in nested]:
        values = [shown(getattr(each, name)) for each in (paper, default)]
        both = [values[0], "" if values[0] == values[1] else values[1]]
        meaning = meanings[name].replace("|", "\\|")
        yield f"| `{prefix}{name}` | {both[0]} | {both[1]} | {meaning} |"
    for name in nested:
        yield f"| **{prefix}{name}** | | | |"
        yield from rows(
            hints[name], getattr(paper, name), getattr(default, name), f"{prefix}{name}."
        )


def shown(value: Any) -> str:
    """A value as it is written in a TOML file or after --set."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "empty"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def page() -> str:
    """The whole page."""
    head = "| key | `paper` | `default` | meaning |\n|---|---|---|---|"
    lines = rows(TrainConfig, recipe("paper"), recipe("default"))
    return "\n".join([INTRODUCTION, head, *lines]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs/settings.md").write_text(page())
