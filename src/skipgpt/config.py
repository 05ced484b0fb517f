"""What a run is made of, as frozen dataclasses that check themselves.

`RouterConfig` says what the routers are and travels in the checkpoint. `TrainConfig` says how they
were trained; its nested `RouterStage`, `LoraStage` and `DataConfig` each answer one question.
Where settings meet, the later wins: recipe < TOML file < `--set key=value` < named options.

Example:
    >>> config = recipe("default", target_sparsity=0.4)
    >>> override(config, {"router_stage.alpha": "20"}).router_stage.alpha
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from skipgpt.errors import ConfigError

Stage = Literal["router", "lora", "joint"]
MAX_SPARSITY = 0.95
C = TypeVar("C")


def check_sparsity(value: float, name: str = "sparsity") -> float:
    """Return `value` if it is a usable share of skipped modules.

    Raises:
        ConfigError: outside 0 to 0.95, or not a number.
    """
    if not 0 <= value <= MAX_SPARSITY:
        raise ConfigError(
            f"reading {name}",
            got=f"{value}",
            expected=f"a share from 0 to {MAX_SPARSITY}",
            todo="0.25 skips a quarter of all modules",
        )
    return float(value)


def _check_choices(instance: Any) -> None:
    """Refuse a value that its field's `Literal` type does not list, and unusable numbers."""
    for name, hint in typing.get_type_hints(type(instance)).items():
        value = getattr(instance, name)
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise ConfigError(f"reading {name}", got=repr(value), expected=f"one of {choices}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not 0 <= value < math.inf:
            raise ConfigError(f"reading {name}", got=str(value), expected="a number, zero or more")


def _check_shares(instance: Any, *names: str) -> None:
    for name in names:
        if getattr(instance, name) > 1:
            got = str(getattr(instance, name))
            raise ConfigError(f"reading {name}", got=got, expected="a share from 0 to 1")


@dataclass(frozen=True)
class RouterConfig:
    """What a router is (paper).

    Attributes:
        head: `linear` maps D to two logits; `mlp` is the authors' D, D/4, ReLU, 2.
        input: `layer_input` lets both routers of a layer read the residual stream that enters the
            layer, as every released checkpoint does; `module_input` lets each read the stream
            that enters its own module, as the paper's formula has it.
        normalize: divide the router's input by its root mean square, without parameters.
        kv: `dense` computes and caches keys and values for every token in every layer.
    """

    head: Literal["linear", "mlp"] = "linear"
    input: Literal["layer_input", "module_input"] = "layer_input"
    normalize: bool = False
    kv: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        _check_choices(self)


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is cut.

    Attributes:
        block_size: tokens a training row (T).
        held_out: share of documents kept for calibration and evaluation.
        max_documents: read no more than this many documents; 0 reads all.
        text_field: the field of a JSONL or parquet row that holds the text.
        calibration_tokens: held-out tokens that set the thresholds.
        evaluation_tokens: other held-out tokens that a finished stage is measured on.
    """

    block_size: int = 256
    held_out: float = 0.05
    max_documents: int = 0
    text_field: str = "text"
    calibration_tokens: int = 8192
    evaluation_tokens: int = 32768

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.block_size < 2:
            raise ConfigError("reading block_size", got=str(self.block_size), expected="2 or more")
        if not 0 < self.held_out < 1:
            raise ConfigError(
                "reading held_out", got=str(self.held_out), expected="a share between 0 and 1"
            )


@dataclass(frozen=True)
class RouterStage:
    """How routers are trained while the base stays frozen (paper).

    Attributes:
        steps: optimizer steps.
        learning_rate: peak rate of AdamW.
        schedule: shape of the rate over the stage; any scheduler name of transformers.
        warmup: share of the steps that warm up.
        alpha: weight of the budget term in the loss.
        temperature_start: Gumbel temperature at the first step.
        temperature_end: Gumbel temperature at the last step.
        ramp: share of the stage over which the target rises from 0; 0 aims at it from the start.
        start: `random` weights (Kaiming, the authors' code), or `keep`: constant margins of +1, so
            that training begins near the dense model.
        static_blend: after training, pull the biases towards the greedy static removal as far as
            that lowers the loss on calibration text; the result is never worse than static.
        static_tokens: training tokens a candidate of the greedy search is measured on.
    """

    steps: int = 10_000
    learning_rate: float = 2e-3
    schedule: str = "constant"
    warmup: float = 0.0
    alpha: float = 8.0
    temperature_start: float = 5.0
    temperature_end: float = 1.0
    ramp: float = 0.0
    start: Literal["random", "keep"] = "random"
    static_blend: bool = False
    static_tokens: int = 4096

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_shares(self, "warmup", "ramp")


@dataclass(frozen=True)
class LoraStage:
    """How LoRA heals the model while the routers stay frozen (paper).

    Attributes:
        steps: optimizer steps.
        learning_rate: peak rate of AdamW.
        schedule: shape of the rate over the stage.
        warmup: share of the steps that warm up.
        rank: rank of the update matrices.
        alpha: LoRA scale; the update is multiplied by alpha / rank.
        dropout: on the input of the update matrices.
        targets: names of the linear layers that get an update.
    """

    steps: int = 10_000
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.1
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj", "gate_proj")

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_shares(self, "warmup", "dropout")
        if self.rank < 1:
            raise ConfigError("reading lora rank", got=str(self.rank), expected="1 or more")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        target_sparsity: share of (token, module) pairs to skip.
        stages: what to train, in order.
        recipe: the name of the settings that this run started from.
        batch_size: rows a forward.
        accumulation: forwards an optimizer step.
        max_grad_norm: gradients are clipped to this norm.
        weight_decay: of AdamW.
        seed: of initial weights, order of rows and Gumbel noise.
        activation_checkpointing: recompute activations in the backward pass (non-reentrant only).
        log_every: steps between lines of metrics.jsonl.
        save_every: steps between resumable states.
        report_to: trackers of transformers ("tensorboard", "wandb", …); metrics.jsonl is always on.
    """

    target_sparsity: float = 0.25
    stages: tuple[Stage, ...] = ("router", "lora")
    recipe: str = "default"
    router: RouterConfig = field(default_factory=RouterConfig)
    router_stage: RouterStage = field(default_factory=RouterStage)
    lora_stage: LoraStage = field(default_factory=LoraStage)
    data: DataConfig = field(default_factory=DataConfig)
    batch_size: int = 16
    accumulation: int = 1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    activation_checkpointing: bool = False
    log_every: int = 10
    save_every: int = 500
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_choices(self)
        check_sparsity(self.target_sparsity, "target_sparsity")
        for stage in self.stages:
            if stage not in typing.get_args(Stage):
                raise ConfigError(
                    "reading stages", got=repr(stage), expected="router, lora or joint"
                )
        if len(set(self.stages)) < len(self.stages):
            got = ", ".join(self.stages)
            raise ConfigError("reading stages", got=got, expected="each stage once")
        if not self.stages:
            raise ConfigError("reading stages", got="no stage", expected="router, lora or joint")
        for name in ("batch_size", "accumulation", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"reading {name}", got=str(getattr(self, name)), expected="1 or more"
                )


def recipe(name: str, **changes: Any) -> TrainConfig:
    """The settings of a named recipe, with some fields of `TrainConfig` replaced.

    `paper` is every number that the paper states. `default` is what measured best at equal budget
    (docs/results.md).

    Raises:
        ConfigError: the recipe is unknown.
    """
    if name == "paper":
        config = TrainConfig(
            recipe="paper", data=DataConfig(block_size=4096), batch_size=16, max_grad_norm=1.0
        )
    elif name == "default":
        config = TrainConfig(
            recipe="default",
            router=RouterConfig(normalize=True),
            router_stage=RouterStage(
                steps=1_000, learning_rate=1e-2, start="keep", static_blend=True
            ),
            lora_stage=LoraStage(steps=1_000, learning_rate=1e-3),
        )
    else:
        raise ConfigError("choosing the recipe", got=repr(name), expected="paper or default")
    return dataclasses.replace(config, **changes)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[C], values: dict[str, Any], doing: str = "reading the config") -> C:
    """Build a config from nested plain values; whatever is absent keeps its default.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a value of the wrong type, or
            a key without default that is absent.
    """
    if not isinstance(values, dict):
        raise ConfigError(doing, got=repr(values), expected="a table of settings")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
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
    values = to_dict(config)
    for key, value in changes.items():
        node, *path = values, *key.split(".")
        for part in path[:-1]:
            if not isinstance(node.get(part), dict):
                raise _unknown_key("applying settings", key, _dotted(values))
            node = node[part]
        if path[-1] not in node or isinstance(node[path[-1]], dict) != isinstance(value, dict):
            raise _unknown_key("applying settings", key, _dotted(values))
        node[path[-1]] = value
    return from_dict(type(config), values, "applying settings")


def read_toml(path: Path) -> dict[str, Any]:
    """The dotted settings of a TOML file, for `override`.

    Raises:
        ConfigError: the file is absent or is no TOML.
    """
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


def _dotted(values: dict[str, Any]) -> list[str]:
    return list(flatten(values))


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
    if origin is Literal:
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


__all__ = [
    "DataConfig",
    "LoraStage",
    "RouterConfig",
    "RouterStage",
    "Stage",
    "TrainConfig",
    "check_sparsity",
    "flatten",
    "from_dict",
    "override",
    "read_toml",
    "recipe",
    "to_dict",
]
