"""`RoutingState`: how a model routes, shared by its routed layers, and what changes it.

Context managers change it temporarily; nothing is recorded unless a trace is asked for, and
recording changes no logit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from skipgpt.config import RouterConfig
from skipgpt.config.checks import check_choice
from skipgpt.errors import ConfigError
from skipgpt.model.trace import KeepCounts, Recorder, Trace
from skipgpt.routing.curve import Curves
from skipgpt.routing.decision import DecisionRule, Threshold
from skipgpt.routing.noise import RowNoise
from skipgpt.system.device_profile import Machine, profile_of

Execution = Literal["dense", "gated", "sparse", "auto"]


class Given(NamedTuple):
    """Some tokens of a batch: places [N] among all B * T, or [B, N] in their rows; and T."""

    tokens: Tensor
    length: int


@dataclass
class RoutingState:
    """Shared by the routed layers of one model.

    Attributes:
        config: what the routers are.
        rule: how margins become decisions.
        execution: `dense` ignores the routers, `gated` runs all and multiplies, `sparse` runs
            kept tokens only, `auto` is the faster of `gated` and `sparse` in each module.
        curves: thresholds by sparsity in each unit of a budget, once calibrated.
        token_mask: [B, T] bool of the current forward, False at padding; None where all are real.
        recorders: each receives every decision; none where nothing is recorded.
        outer_rule: the rule to restore after a forward that was given a sparsity of its own.
        can_pack: False where the current forward was asked for something that needs all tokens to
            run.
        warned: reasons, already logged, why a forward saved nothing.
        machines: the speed of each device and dtype that a forward ran on.
        noise: source of the random numbers of training; torch's own generator where None. Where it
            is set, every module takes part in every step, even for no token: another process may
            keep a module that this one skips, and gradients are summed over processes.
        given: which tokens the current module gets; None where it gets all.
        facts: what the checkpoint that the model was loaded from says, to be saved again.
        lora: whether the model has a LoRA adapter, or weights into which one may be merged.
    """

    config: RouterConfig
    rule: DecisionRule = field(default_factory=Threshold)
    execution: Execution = "auto"
    curves: Curves | None = None
    token_mask: Tensor | None = None
    recorders: tuple[Recorder, ...] = ()
    outer_rule: DecisionRule | None = None
    can_pack: bool = True
    warned: set[str] = field(default_factory=set)
    machines: dict[tuple[torch.device, torch.dtype], Machine] = field(default_factory=dict)
    noise: RowNoise | None = None
    given: Given | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    lora: bool = False

    @property
    def keeps_all(self) -> bool:
        """Whether every token runs every module, and neither margins nor gradients are needed."""
        return (
            isinstance(self.rule, Threshold)
            and self.rule.value == -math.inf
            and self.execution in ("auto", "sparse")
            and self.config.kv == "dense"
            and self.noise is None
            and not torch.is_grad_enabled()
            and all(recorder.counts_only for recorder in self.recorders)
        )

    def machine(self, device: torch.device, dtype: torch.dtype) -> Machine:
        """The speed of a device in a dtype; looked up once."""
        key = device, dtype
        if key not in self.machines:
            self.machines[key] = profile_of(*key)
        return self.machines[key]


def routing_state(model: nn.Module) -> RoutingState:
    """The state that a model's routed layers share; raises a ConfigError without routers."""
    for module in model.modules():
        state = getattr(module, "routing", None)
        if isinstance(state, RoutingState):
            return state
    raise ConfigError(
        "looking for routers",
        got=f"a {type(model).__name__} without any",
        todo="call skipgpt.add_routers(model) or skipgpt.load(checkpoint) first",
    )


@contextmanager
def _changed(state: RoutingState, **values: object) -> Iterator[None]:
    before = {name: getattr(state, name) for name in values}
    for name, value in values.items():
        setattr(state, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(state, name, value)


@contextmanager
def record_routing(model: nn.Module) -> Iterator[Trace]:
    """Record every decision made inside the block.

    Raises:
        ConfigError: the model has no routers, or trains with reentrant activation checkpointing,
            under which recorded decisions carry wrong gradients without an error.

    Example:
        with skipgpt.record_routing(model) as trace:
            model.generate(**inputs)
        print(trace.sparsity())
    """
    refuse_reentrant_checkpointing(model)
    with _recording(model, trace := Trace()):
        yield trace


@contextmanager
def count_routing(model: nn.Module) -> Iterator[KeepCounts]:
    """Count how many tokens run each module inside the block; takes no memory per token.

    Raises:
        ConfigError: the model has no routers.

    Example:
        with count_routing(model) as counts:
            model.generate(**inputs)
        print(counts.sparsity(), counts.keep_ratios())
    """
    with _recording(model, counts := KeepCounts()):
        yield counts


@contextmanager
def _recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Open a recorder beside those that are open already."""
    state = routing_state(model)
    state.recorders = (*state.recorders, recorder)
    try:
        yield
    finally:  # itself, whichever of several ends first
        state.recorders = tuple(each for each in state.recorders if each is not recorder)


@contextmanager
def execution(model: nn.Module, kind: Execution) -> Iterator[None]:
    """Run the model `dense`, `gated`, `sparse` or `auto` inside the block.

    Raises:
        ConfigError: the model has no routers, or the kind is unknown.
    """
    check_choice("choosing the execution", kind, get_args(Execution))
    with _changed(routing_state(model), execution=kind):
        yield


@contextmanager
def use_rule(model: nn.Module, rule: DecisionRule) -> Iterator[None]:
    """Decide by this rule inside the block."""
    with _changed(routing_state(model), rule=rule):
        yield


@contextmanager
def use_noise(model: nn.Module, noise: RowNoise) -> Iterator[None]:
    """Take the random numbers of the rule and of dropout from `noise` inside the block."""
    state = routing_state(model)
    keyed = getattr(state.rule, "keyed", None)
    rule = state.rule if keyed is None else keyed(noise)
    with _changed(state, noise=noise, rule=rule):
        yield


@contextmanager
def given_tokens(state: RoutingState, tokens: Tensor, length: int) -> Iterator[None]:
    """Tell dropout which of the B * length tokens the module inside the block receives."""
    if state.noise is None:
        yield
        return
    with _changed(state, given=Given(tokens, length)):
        yield


def refuse_reentrant_checkpointing(model: nn.Module) -> None:
    """Raise a ConfigError if reentrant activation checkpointing would recompute a layer."""
    for function in checkpointing_functions(model):
        if getattr(function, "keywords", {}).get("use_reentrant", False):
            raise ConfigError(
                "recording decisions for training",
                got="reentrant activation checkpointing",
                expected="the non-reentrant kind; the other returns wrong gradients silently",
                todo='enable it with {"use_reentrant": False}',
            )


def checkpointing_functions(model: nn.Module) -> list[Any]:
    """What recomputes layers in the backward pass; empty without activation checkpointing."""
    return [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and module.training
    ]
