"""What can be compared, and the notation of methods.

router                             one of the kinds below
sleb+lora                          healed with the LoRA stage of the run
sleb+stand_in                      fitted stand-ins replace what is removed; +lora may follow
router@paper                       with the settings of a recipe
router:router.input=module_input   with one setting changed; more follow after further colons
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from skipgpt.baselines.registry import STATIC
from skipgpt.errors import ConfigError

_FROM_NOISE: Mapping[str, Any] = {
    "stages": ["router"],
    "router_stage.learning_rate": 2e-2,
    "router_stage.noise": 1.0,
    "router_stage.distill": 0.0,
}
_NO_WARM_START: Mapping[str, Any] = {
    **_FROM_NOISE,
    "router_stage.start": "keep",
    "router_stage.start_margin": 1.0,
    "router.stand_in": 0,
}
_WHOLE_LAYERS: Mapping[str, Any] = {"router.decides": "layer"}


@dataclass(frozen=True)
class Trained:
    """A kind whose routes are learned.

    Attributes:
        what: what it is, in a line.
        settings: settings in which it differs from the recipe.
        top_k: whether the top-k tokens of each layer run, instead of those above a threshold.
    """

    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    top_k: bool = False


TRAINED: Mapping[str, Trained] = {
    "router": Trained("a router for each module, fitted, then trained; base frozen (RT)"),
    "fit": Trained("the same routers as they are fitted, without training", {"stages": ["fit"]}),
    "joint": Trained("routers and LoRA at once", {**_FROM_NOISE, "stages": ["joint"]}),
    "coupled": Trained("one router per layer, for attention and MLP together", _WHOLE_LAYERS),
    "sequence": Trained(
        "one decision per sequence and module", {**_FROM_NOISE, "router.decides": "sequence"}
    ),
    "d-llm": Trained(
        "one Gumbel router per layer, skipped keys and values evicted (D-LLM)",
        {**_NO_WARM_START, **_WHOLE_LAYERS, "router.kv": "skip"},
    ),
    "mod": Trained(
        "the best tokens of each layer, whole layers (MoD, arXiv 2404.02258)",
        {**_NO_WARM_START, **_WHOLE_LAYERS, "router_stage.alpha": 0.0},
        top_k=True,
    ),
    "mod-d": Trained(
        "the best tokens of each module (MoD-D)",
        {**_NO_WARM_START, "router_stage.alpha": 0.0},
        top_k=True,
    ),
}
DENSE, RANDOM = "dense", "random"
KINDS: Mapping[str, str] = {
    DENSE: "the base model",
    RANDOM: "routes at random, at the rates that `router` learned for each module",
    **{name: kind.what for name, kind in TRAINED.items()},
    **{name: static.source for name, static in STATIC.items()},
}

_ADDED = {"stand_in", "lora"}
_OF_STAND_INS = ("router.stand_in", "fit_stage.stand_in_tokens", "fit_stage.rounds")


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        kind: one of `KINDS`.
        lora: whether stage `lora` heals it.
        stand_in: whether fitted stand-ins run in place of what a static method removes.
        recipe: the recipe it trains with; None for the comparison's.
        settings: dotted settings of its own.
    """

    kind: str
    lora: bool = False
    stand_in: bool = False
    recipe: str | None = None
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def has_lora(self) -> bool:
        """Whether LoRA trains at all."""
        return self.lora or self.kind == "joint"

    def without_lora(self) -> Method:
        """Return the method that stage `lora` heals."""
        own = tuple(pair for pair in self.settings if not pair[0].startswith("lora_stage."))
        return replace(self, lora=False, settings=own)

    @property
    def plain(self) -> str:
        """The name without recipe and settings."""
        return f"{self.kind}{'+stand_in' * self.stand_in}{'+lora' * self.lora}"

    def __str__(self) -> str:
        recipe = f"@{self.recipe}" if self.recipe else ""
        changes = "".join(f":{key}={value}" for key, value in self.settings)
        return f"{self.plain}{recipe}{changes}"


def split_methods(text: str) -> list[str]:
    """Split a comma-separated list of methods, but not at commas inside a setting's value.

    Example:
        >>> split_methods("dense,dense+lora:lora_stage.targets=q_proj,v_proj,sleb")
        ['dense', 'dense+lora:lora_stage.targets=q_proj,v_proj', 'sleb']
    """
    found: list[str] = []
    for piece in text.split(","):
        is_method = re.split(r"[+@:]", piece.strip())[0] in KINDS
        if found and ":" in found[-1] and not is_method and "=" not in piece:
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found


def parse_method(text: str) -> Method:
    """Parse a method as it is written on the command line.

    Raises:
        ConfigError: an unknown kind (the nearest known one is named), a kind that cannot be healed
            or has nothing that stand-ins could replace, or a setting that has no effect on it.

    Example:
        >>> parse_method("router+lora@paper").recipe
        'paper'
    """
    doing = "choosing what to compare"
    name, *changes = text.strip().split(":")
    name, at, recipe = name.partition("@")
    kind, *added = name.split("+")
    if kind not in KINDS or {*added} - _ADDED or len({*added}) < len(added):
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise ConfigError(
            doing,
            got=repr(text),
            expected=f"one of {', '.join(KINDS)}; +stand_in and +lora may follow",
            todo=f"did you mean {near[0]}?" if near else "see `skipgpt compare --help`",
        )
    if at and not recipe:
        raise ConfigError(doing, got=repr(text), expected="a recipe after @")
    pairs = [change.partition("=") for change in changes]
    if bad := [change for change, pair in zip(changes, pairs, strict=True) if not pair[1]]:
        raise ConfigError(doing, got=repr(bad[0]), expected="key=value after the colon")
    settings = tuple((key, value) for key, _, value in pairs)
    method = Method(kind, "lora" in added, "stand_in" in added, recipe or None, settings)
    _check(method, text)
    return method


def _check(method: Method, text: str) -> None:
    """Refuse methods that cannot be made, and settings without effect."""
    kind, doing = method.kind, "choosing what to compare"
    if method.lora and kind not in (DENSE, "router", "fit", *STATIC):
        expected = "+lora after dense, router, fit or a static method"
        raise ConfigError(doing, got=repr(text), expected=expected)
    if method.stand_in and (kind not in STATIC or STATIC[kind].changes_weights):
        raise ConfigError(
            doing,
            got=repr(text),
            expected="+stand_in after a static method that changes no weights",
            todo="of learned routes, router.stand_in sets the rank",
        )
    if kind in (*TRAINED, RANDOM):
        return
    allowed = (*("lora_stage.",) * method.lora, *_OF_STAND_INS * method.stand_in)
    if method.lora and method.stand_in:  # stand-ins train, too
        allowed += ("router_stage.stand_in_rate",)
    foreign = [key for key, _ in method.settings if not key.startswith(allowed)]
    if (method.recipe or foreign) and allowed:
        raise ConfigError(
            doing,
            got=repr(text),
            expected=f"settings of {' and '.join(each.rstrip('.') for each in allowed)} after "
            f"{method.plain}: nothing else of it is trained",
            todo="what else holds for all methods is set with --set and --recipe",
        )
    if method.recipe or foreign:
        raise ConfigError(
            doing,
            got=repr(text),
            expected=f"{kind} alone: nothing of it is trained, so no setting changes it",
            todo="the text that static methods choose on is set for all, with --set",
        )
