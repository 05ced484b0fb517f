"""What can be compared, and how a method is written down.

router                             one of the kinds below
sleb+lora                          healed with the LoRA stage of the run
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

_NO_WARM_START: Mapping[str, Any] = {
    "router_stage.static_blend": False,
    "router_stage.start": "keep",
    "router_stage.start_margin": 1.0,
    "router.stand_in": 0,
}
_WHOLE_LAYERS: Mapping[str, Any] = {"router.decides": "layer"}


@dataclass(frozen=True)
class Trained:
    """A kind whose routes are learned.

    Attributes:
        what: it is, in a line.
        settings: in which it differs from the recipe.
        top_k: whether the best tokens of each layer run, instead of those above a threshold.
    """

    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    top_k: bool = False


TRAINED: Mapping[str, Trained] = {
    "router": Trained("a router for each module, base frozen (RT)"),
    "joint": Trained("routers and LoRA at once", {"stages": ["joint"]}),
    "coupled": Trained("one router a layer, for attention and MLP together", _WHOLE_LAYERS),
    "sequence": Trained("one decision a sequence and module", {"router.decides": "sequence"}),
    "d-llm": Trained(
        "one Gumbel router a layer, skipped keys and values evicted (D-LLM)",
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


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        kind: one of `KINDS`.
        lora: whether stage `lora` heals it.
        recipe: whose settings it trains with; None where the comparison's.
        settings: dotted settings of its own.
    """

    kind: str
    lora: bool = False
    recipe: str | None = None
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def has_lora(self) -> bool:
        """Whether LoRA trains at all."""
        return self.lora or self.kind == "joint"

    def without_lora(self) -> Method:
        """What stage `lora` heals."""
        own = tuple(pair for pair in self.settings if not pair[0].startswith("lora_stage."))
        return replace(self, lora=False, settings=own)

    def __str__(self) -> str:
        recipe = f"@{self.recipe}" if self.recipe else ""
        changes = "".join(f":{key}={value}" for key, value in self.settings)
        return f"{self.kind}{'+lora' if self.lora else ''}{recipe}{changes}"


def split_methods(text: str) -> list[str]:
    """The methods of a list by commas; a comma inside a setting's value separates none.

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
    """A method from how it is written on the command line.

    Raises:
        ConfigError: an unknown kind (the nearest known one is named), or a kind that cannot be
            healed.

    Example:
        >>> parse_method("router+lora@paper").recipe
        'paper'
    """
    name, *changes = text.strip().split(":")
    name, at, recipe = name.partition("@")
    kind, plus, healed = name.partition("+")
    if kind not in KINDS or (plus and healed != "lora"):
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise ConfigError(
            "choosing what to compare",
            got=repr(text),
            expected=f"one of {', '.join(KINDS)}; +lora may follow",
            todo=f"did you mean {near[0]}?" if near else "see `skipgpt compare --help`",
        )
    if at and not recipe:
        raise ConfigError("choosing what to compare", got=repr(text), expected="a recipe after @")
    if plus and kind not in (DENSE, "router", *STATIC):
        raise ConfigError(
            "choosing what to compare",
            got=repr(text),
            expected="+lora after dense, router or a static method",
        )
    pairs = [change.partition("=") for change in changes]
    if bad := [change for change, pair in zip(changes, pairs, strict=True) if not pair[1]]:
        raise ConfigError(
            "choosing what to compare", got=repr(bad[0]), expected="key=value after the colon"
        )
    settings = tuple((key, value) for key, _, value in pairs)
    foreign = [key for key, _ in settings if not key.startswith("lora_stage.")]
    if plus and kind not in TRAINED and (recipe or foreign):
        raise ConfigError(
            "choosing what to compare",
            got=repr(text),
            expected=f"settings of lora_stage after {kind}+lora: nothing else of it is trained",
            todo="what else holds for all methods is set with --set and --recipe",
        )
    if (recipe or settings) and not plus and kind not in (*TRAINED, RANDOM):
        raise ConfigError(
            "choosing what to compare",
            got=repr(text),
            expected=f"{kind} alone: nothing of it is trained, so no setting changes it",
            todo="the text that static methods choose on is set for all, with --set",
        )
    return Method(kind, bool(plus), recipe or None, settings)
