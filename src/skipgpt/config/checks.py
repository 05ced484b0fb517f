"""Checks that the frozen dataclasses of settings make of their own fields."""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from skipgpt.errors import ConfigError

T = TypeVar("T")


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of the fields of a class, which take longer to find out than to check."""
    return typing.get_type_hints(kind)


def check_choices(instance: Any) -> None:
    """Refuse a value that its field's `Literal` type does not list, and unusable numbers."""
    for name, hint in hints_of(type(instance)).items():  # type: ignore[arg-type]
        value = getattr(instance, name)
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise ConfigError(f"reading {name}", got=repr(value), expected=f"one of {choices}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not 0 <= value < math.inf:
            raise ConfigError(f"reading {name}", got=str(value), expected="a number, zero or more")


def check_choice(doing: str, value: Any, choices: Iterable[T], todo: str = "") -> T:
    """Return `value` if it is one of several choices, else raise a ConfigError that names them."""
    known = tuple(choices)
    if value not in known:
        *most, last = ("none" if each is None else str(each) for each in known)
        expected = f"{', '.join(most)} or {last}"
        raise ConfigError(doing, got=repr(value), expected=expected, todo=todo)
    return typing.cast("T", value)


def check_shares(instance: Any, *names: str, whole: bool = True) -> None:
    """Refuse a share above 1, and 1 as well unless a share may be the whole."""
    for name in names:
        if (value := getattr(instance, name)) > 1 or (value == 1 and not whole):
            expected = "a share from 0 to 1" if whole else "a share of 0 or more, below 1"
            raise ConfigError(f"reading {name}", got=str(value), expected=expected)


def check_counts(instance: Any, *names: str) -> None:
    """Refuse a count below 1."""
    for name in names:
        if (value := getattr(instance, name)) < 1:
            raise ConfigError(f"reading {name}", got=str(value), expected="1 or more")
