"""Configs from and to plain values: JSON, TOML and `key=value` on a command line.

Example:
    >>> from skipgpt.config import recipe
    >>> override(recipe("default"), {"router_stage.alpha": "20"}).router_stage.alpha
    20.0
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from skipgpt.config.checks import hints_of
from skipgpt.errors import ConfigError

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[C], values: dict[str, Any], doing: str = "reading the config") -> C:
    """Build a config from nested plain values; whatever is absent keeps its default.

    A type may list settings of earlier releases in `RETIRED`, each with the value that had no
    effect, which is ignored; None where no value has an effect without the others.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a value of the wrong type, or
            a key without default that is absent.
    """
    if not isinstance(values, dict):
        raise ConfigError(doing, got=repr(values), expected="a table of settings")
    hints = hints_of(kind)  # type: ignore[arg-type]
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    retired = getattr(kind, "RETIRED", {})
    for key, value in values.items():
        if key in retired:
            _check_retired(f"{doing}, {key}", value, retired[key])
            continue
        if key not in known:
            raise _unknown_key(doing, key, list(known))
        arguments[key] = _coerce(hints[key], value, f"{doing}, {key}")
    absent = dataclasses.MISSING
    if missing := [
        name
        for name, f in known.items()
        if name not in arguments and f.default is absent and f.default_factory is absent
    ]:
        raise ConfigError(doing, got="nothing for " + ", ".join(missing), expected="a value each")
    return kind(**arguments)


def override(config: C, changes: dict[str, Any]) -> C:
    """A copy of `config` with dotted keys replaced, as in `{"router_stage.alpha": "20"}`.

    Raises:
        ConfigError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    values = _with_retired(config, to_dict(config))
    for key, value in changes.items():
        node, (*path, last) = values, key.split(".")
        for part in path:
            node = node[part] if isinstance(node.get(part), dict) else {}
        if last not in node or isinstance(node[last], dict) != isinstance(value, dict):
            raise _unknown_key("applying settings", key, list(flatten(values)))
        node[last] = value
    return from_dict(type(config), values, "applying settings")


def parse_pair(pair: str) -> tuple[str, str]:
    """The key and value of `key=value`; raises ConfigError if there is no equals sign."""
    key, equals, value = pair.partition("=")
    if not equals:
        raise ConfigError("reading --set", got=repr(pair), expected="key=value")
    return key, value


def read_toml(path: Path) -> dict[str, Any]:
    """Read the dotted settings of a TOML file, for `override`; raise ConfigError if it cannot."""
    try:
        with path.open("rb") as file:
            return flatten(tomllib.load(file))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"reading {path}", got=str(error), expected="a TOML file; see docs/training.md"
        ) from error


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def changed(config: Any) -> dict[str, Any]:
    """The dotted settings of a config that differ from its type's defaults.

    Example:
        >>> from skipgpt.config import RouterConfig
        >>> changed(RouterConfig(head="mlp"))
        {'head': 'mlp'}
    """
    usual = flatten(to_dict(type(config)()))
    return {key: value for key, value in flatten(to_dict(config)).items() if value != usual[key]}


def _check_retired(doing: str, value: Any, usual: Any) -> None:
    """Refuse a value with which a retired setting had an effect."""
    if usual is not None and _coerce(type(usual), value, doing) != usual:
        raise ConfigError(
            doing,
            got=str(value),
            expected=f"{str(usual).lower()}, or nothing: what this setting did is gone",
            todo="leave it out; stage fit starts better (docs/results.md)",
        )


def _with_retired(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Values of a config, and those of retired settings beside them."""
    nested = {
        key: _with_retired(getattr(config, key), value)
        for key, value in values.items()
        if dataclasses.is_dataclass(getattr(config, key))
    }
    return getattr(config, "RETIRED", {}) | values | nested


def _unknown_key(doing: str, key: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    if not near:
        tails = {name.rsplit(".", 1)[-1]: name for name in known}
        close = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.4)
        near = [tails[name] for name in close]
    return ConfigError(
        doing,
        got=f"the unknown key {key!r}",
        expected="one of " + ", ".join(known),
        todo=f"did you mean {near[0]!r}?" if near else "",
    )


def _coerce(hint: Any, value: Any, doing: str) -> Any:
    """Turn a JSON or command-line value into what the field's type asks for."""
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type", hint), value, doing)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        some = next(arg for arg in inner if arg is not types.NoneType)
        return None if value is None else _coerce(some, value, doing)
    if origin is Literal or hint is Any:
        return value  # the dataclass names the choices itself
    try:
        if origin is tuple:
            items = value.split(",") if isinstance(value, str) else [*value]
            items = [item for item in items if item != ""]
            hints = [inner[0]] * len(items) if inner[-1] is Ellipsis else inner
            pairs = zip(hints, items, strict=True)
            return tuple(_coerce(each, item, doing) for each, item in pairs)
        if origin is dict:
            return {str(key): _coerce(inner[1], item, doing) for key, item in value.items()}
        return _scalar(hint, value)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        name = str(hint) if origin else hint.__name__
        raise ConfigError(doing, got=repr(value), expected=f"a value of type {name}") from error


def _scalar(kind: type, value: Any) -> Any:
    """A bool, a number or a text; numbers and bools may come as the text of a command line."""
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise TypeError
    if kind is str:
        return value
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError
    return kind(number)
