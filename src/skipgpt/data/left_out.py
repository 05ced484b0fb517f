"""Find turns and fields of a chat that its template ignores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]
"""Where something stands in the turns: `(1, "tool_calls", 0)` is the first call of turn 1."""

_TELLING_APART = frozenset({"id", "type", "index"})
"""Fields of calls and content parts that no template has to read, as `tool_call_id` of a turn."""

_MARK = "7319048{:09}"
"""Sentinel number: in no text, unchanged by template filters, exact as a float."""


def left_out(
    turns: Sequence[dict[str, Any]], render: Callable[[Sequence[dict[str, Any]]], str]
) -> str | None:
    """The place of a turn, a field or an item that the template does not read; None without any.

    The template is rendered once with a mark behind every text and in place of every other value.
    Only what has no mark in the result is then left out by itself: if that changes nothing, the
    template does not read it. What a template fails without is read.

    Args:
        turns: that the template takes, each with its `role`.
        render: puts turns into the template.

    Example:
        >>> hi = {"role": "user", "content": "Hi", "mood": "glad"}
        >>> left_out([hi], lambda turns: "".join(turn["content"] for turn in turns))
        'messages.0.mood'
    """

    def rendered(some: Sequence[dict[str, Any]]) -> str | None:
        try:
            return render(some)
        except Exception:  # templates raise whatever they like
            return None

    turns = list(turns)
    marks = {part: _MARK.format(n) for n, part in enumerate(_parts(turns))}
    seen = set(re.findall(_MARK.format(0)[:-9] + r"\d{9}", rendered(_marked(turns, marks)) or ""))
    unseen = [part for part, mark in marks.items() if mark not in seen]
    whole = rendered(turns) if unseen else None
    for part in unseen:
        if rendered(_without(turns, part)) != whole:
            continue
        while len(part) > 1 and rendered(_without(turns, part[:-1])) == whole:
            part = part[:-1]
        place = "messages." + ".".join(map(str, part))
        return place if len(part) > 1 else f"{place} (role {turns[int(part[0])]['role']!r})"
    return None


def _parts(value: Any, at: Path = ()) -> Iterator[Path]:
    """The places of all texts and other values, and of what holds only empty ones."""
    match value:
        case dict():
            items: list[tuple[str | int, Any]] = list(value.items())
        case list():
            items = list(enumerate(value))
        case _:
            items = []
    inside = [part for key, each in items for part in _parts(each, (*at, key))]
    yield from inside or [at] * _can_be_lost(value, at)


def _can_be_lost(value: Any, at: Path) -> bool:
    """Whether there is anything to lose in a value without parts."""
    match at:
        case ():
            return False
        case (_,):
            return value["role"] not in ("user", "assistant")
        case (_, "role" | "tool_call_id"):
            return False
        case (_, "tool_calls" | "content", _, field) if field in _TELLING_APART:
            return False
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


def _marked(value: Any, marks: Mapping[Path, str], at: Path = ()) -> Any:
    """The same value with the mark of each part behind a text, and else in its place."""
    if isinstance(value, dict):
        return {key: _marked(each, marks, (*at, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_marked(each, marks, (*at, n)) for n, each in enumerate(value)]
    if at not in marks:
        return value
    if isinstance(value, str):
        return value + marks[at]
    if value and not isinstance(value, bool):
        return int(marks[at])
    return marks[at] if value else _FalseText(marks[at])  # templates may ask whether it is true


class _FalseText(str):
    """A text that counts as false, as what it stands for does."""

    def __bool__(self) -> bool:
        return False


def _without(value: Any, part: Path) -> Any:
    """The same value without a part of it; content is emptied, as templates expect some."""
    key, rest = part[0], part[1:]
    if rest or key == "content":
        new = _without(value[key], rest) if rest else ""
        if isinstance(value, dict):
            return value | {key: new}
        return [*value[:key], new, *value[int(key) + 1 :]]
    if isinstance(value, dict):
        return {name: each for name, each in value.items() if name != key}
    return [*value[:key], *value[int(key) + 1 :]]
