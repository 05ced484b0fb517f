"""Pre-forward hook: finds padding, picks the cache, rejects unsupported arguments.

It is registered on the module that runs the layers; see `surgery.py`.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.config import check_pair
from skipgpt.errors import ConfigError
from skipgpt.model.sparsity import threshold_at
from skipgpt.model.state import RoutingState, checkpointing_functions

logger = logging.getLogger("skipgpt")

_PACKABLE = ("eager", "sdpa", "flex_attention")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def begin_forward(
    state: RoutingState,
    layers: int,
    names: tuple[str, ...],
    decoder: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Arguments:
    """Prepare a forward: set the token mask, choose the cache, return the decoder's arguments.

    Sets the state's `token_mask` from a 2-D attention mask [B, S]. `names` are those of the
    decoder's arguments, in order.

    Raises:
        ConfigError: the cache does not fit, or something was asked for that only a forward of all
            tokens can give.
    """
    given = dict(zip(names, args, strict=False)) | kwargs
    mask, inputs = given.get("attention_mask"), given.get("input_ids")
    inputs = given.get("inputs_embeds") if inputs is None else inputs
    state.token_mask, state.can_pack = None, True
    if not isinstance(inputs, Tensor):
        return args, kwargs
    if isinstance(mask, Tensor) and mask.ndim == 2:
        state.token_mask = mask[:, -inputs.shape[1] :].bool()
    if state.execution == "dense":
        return args, kwargs
    config: Any = decoder.config
    _refuse_unmasked(config, given)
    if obstacle := _obstacle(state, config, given):
        if state.execution != "auto" or state.config.kv == "skip":
            raise obstacle
        state.can_pack = False
        if obstacle.got not in state.warned:
            state.warned.add(obstacle.got)
            logger.warning("every token runs every module, nothing is saved: %s", obstacle.got)
    cache, used = given.get("past_key_values"), given.get("use_cache")
    caches = getattr(config, "use_cache", False) if used is None else used
    if cache is None and not (caches and state.config.kv == "skip"):
        return args, kwargs
    from skipgpt.model.caches.growing_cache import make_room
    from skipgpt.model.caches.policy import fitting_cache

    fit = fitting_cache(cache, state.config.kv, config, layers, len(inputs))
    if state.execution in ("sparse", "auto"):
        make_room(fit)
    return (args, kwargs) if fit is cache else ((), given | {"past_key_values": fit})


def take_sparsity(
    state: RoutingState, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """Pop `sparsity` and `budget` from the arguments of a forward: they hold for that forward only.

    Raises:
        ConfigError: the checkpoint has no such sparsity, a budget comes without a sparsity, or
            layers would be recomputed after the forward.
    """
    kwargs = dict(kwargs)
    sparsity, budget = kwargs.pop("sparsity", None), kwargs.pop("budget", None)
    check_pair(sparsity, budget)
    if sparsity is None:
        return args, kwargs
    if torch.is_grad_enabled() and checkpointing_functions(module):
        raise ConfigError(
            "running a forward at a sparsity of its own",
            got="activation checkpointing, which recomputes layers after that forward",
            expected="a sparsity that holds until the backward pass has ended",
            todo="put forward and backward into `with skipgpt.at_sparsity(model, …):` instead",
        )
    rule = threshold_at(state, sparsity, budget)
    state.rule, state.outer_rule = rule, state.outer_rule or state.rule
    return args, kwargs


def give_back_sparsity(state: RoutingState, *_: Any) -> None:
    """Restore the rule after a forward that was given a sparsity."""
    if state.outer_rule is not None:
        state.rule, state.outer_rule = state.outer_rule, None


def _obstacle(state: RoutingState, config: Any, given: dict[str, Any]) -> ConfigError | None:
    """The error for an argument that needs all tokens to run; None if there is none."""
    packs = state.execution in ("sparse", "auto")
    skips = packs or state.config.kv == "skip"

    def asked(name: str) -> bool:
        wish = given.get(name)
        return bool(getattr(config, name, False) if wish is None else wish)

    if skips and _is_paged(given):
        return ConfigError(
            "running kept tokens only",
            got="continuous batching, in which attention writes the cache itself",
            expected="a cache that is written for all tokens",
            todo='use `generate`, or execution "gated" with kv="dense"',
        )
    for name, expected in (
        ("output_attentions", "weights of all tokens to exist"),
        ("output_router_logits", "experts to be chosen for all tokens"),
    ):
        if packs and asked(name):
            return ConfigError(
                "running kept tokens only",
                got=f"{name}=True",
                expected=expected,
                todo='run the model with execution "gated" or "dense" for that',
            )
    if skips and config._attn_implementation not in _PACKABLE:
        return ConfigError(
            "running attention for kept tokens only",
            got=f"attn_implementation {config._attn_implementation!r}",
            expected="one whose masks have rows to take: " + ", ".join(_PACKABLE),
            todo='load the model with attn_implementation="sdpa"',
        )
    return None


def _refuse_unmasked(config: Any, given: dict[str, Any]) -> None:
    """Raise where transformers would make no mask at all, and padding would be attended to."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    known = ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
    if not _is_paged(given) and config._attn_implementation not in known:
        raise ConfigError(
            "running a routed model",
            got=f"attn_implementation {config._attn_implementation!r} without a mask function",
            expected="one that AttentionMaskInterface knows",
            todo="register its mask with transformers.AttentionMaskInterface.register",
        )


def _is_paged(given: dict[str, Any]) -> bool:
    """Whether a paged cache is given; it has its own argument and its own mask."""
    return given.get("cache") is not None
