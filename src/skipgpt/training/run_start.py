"""What a run starts from: a base model, a checkpoint or a model in memory, and new routers."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skipgpt.checkpoint.folder import is_checkpoint, read_info
from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import described, origin_of
from skipgpt.config import BUDGET_NOUNS, TrainConfig, recipe
from skipgpt.cost import Savings, savings
from skipgpt.errors import ConfigError
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.base import load_base, load_tokenizer
from skipgpt.model.loading.bitsandbytes import quantization_of
from skipgpt.model.lora import check_targets
from skipgpt.model.sparsity import clamp_to_curve, set_sparsity
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers, hidden_size, routers, stand_ins
from skipgpt.routing.router import set_constant
from skipgpt.system.progress import advancing

logger = logging.getLogger("skipgpt")


@dataclass(frozen=True)
class Base:
    """What a run starts from.

    Attributes:
        name: hub id, folder, GGUF file, `nano`, or a checkpoint; of a model in memory, where
            transformers loaded it from.
        model: the model in memory, if it is one.
        tokenizer: of that model; loaded from `name` if None.
        is_new: whether its routers are still to be made.
    """

    name: str
    model: Any = None
    tokenizer: Any = None
    is_new: bool = False

    @classmethod
    def of(cls, base: Any, tokenizer: Any) -> Base:
        """From what `train` was given: a name or a model that was loaded from somewhere.

        Raises ConfigError at anything else, or a tokenizer without a model.
        """
        if isinstance(base, nn.Module):
            return cls(origin_of(base), base, tokenizer, is_new=not routers(base))
        if not isinstance(base, (str, Path)):
            raise ConfigError(
                "planning the run",
                got=f"a {type(base).__name__} as the base",
                expected="a hub id, a folder, a checkpoint, or a model of transformers",
            )
        if tokenizer is not None:
            raise ConfigError(
                "planning the run",
                got=f"a tokenizer beside the name {base!r}",
                expected="a tokenizer beside a model; a name brings its own",
                todo="leave out tokenizer=",
            )
        return cls(str(base), is_new=not is_checkpoint(base))


def start(
    base: Base, config: TrainConfig, device: str, dtype: str, quantize: str | None
) -> tuple[Any, Any, CheckpointInfo]:
    """Load the model to train, with routers, its tokenizer, and what it is.

    Raises:
        ConfigError: LoRA alone on a base model, LoRA targets that it does not have, or another
            quantisation than it is held in.
        SkipGPTError: the base or the checkpoint cannot be loaded.
    """
    if base.model is None and is_checkpoint(base.name):
        _check_held(base.name, read_info(base.name).quantization, quantize)
        model, tokenizer = load(base.name, trainable=True, device=device, dtype=dtype)
        set_to_target(model, config)
        return model, tokenizer, read_info(base.name)
    if base.model is None:
        model, tokenizer = load_base(base.name, device=device, dtype=dtype, quantize=quantize)
    else:
        tokenizer = base.tokenizer or load_tokenizer(base.name)
        model = base.model.to(device).eval()
    _check_held(base.name, quantization_of(model), quantize)
    routed = bool({"fit", "router", "joint"} & set(config.stages)) or not base.is_new
    if "lora" in config.stages and not routed:
        raise ConfigError(
            "planning the stages",
            got=f"lora alone on the base model {base.name!r}",
            expected="routers to heal around",
            todo="put fit in front (--stages fit,lora), or give a checkpoint as BASE",
        )
    if {"lora", "joint"} & set(config.stages):
        check_targets(model, config.lora_stage)
    if not routers(model):
        add_routers(model, config.router)
    name = base.name if base.model is None else None
    return model, tokenizer, described(model, name, tokenizer)


def _check_held(base: str, found: str | None, wanted: str | None) -> None:
    """Refuse a quantisation other than that of the stored base or of the trained routers."""
    if wanted not in (None, found):
        raise ConfigError(
            f"quantising the base {base!r} to {wanted}",
            got=f"one that is held in {found or 'another format'} already",
            expected="a base that is not quantised, or in the same kind; a checkpoint keeps the "
            "format that its routers were trained on",
            todo="leave out --quantize (quantize=None)",
        )


def with_routers_of(model: Any, config: TrainConfig) -> TrainConfig:
    """Return the config with the model's router settings.

    Raises ConfigError if others were requested.
    """
    has, asked = routing_state(model).config, config.router
    of_recipes = recipe("paper").router, recipe("default").router
    if asked not in of_recipes and asked.resolved(hidden_size(model)) != has:
        raise ConfigError(
            "training a checkpoint further",
            got=f"other routers than it has: {asked}",
            expected=f"{has}",
            todo="leave router.… out, or start from the base model",
        )
    if asked.kv != has.kv:
        logger.info('keys and values stay "%s", as the checkpoint was trained', has.kv)
    return dataclasses.replace(config, router=has)


def within_reach(model: Any, config: TrainConfig, or_modules: bool) -> TrainConfig:
    """The config, in a unit in which skipping can save the target; modules, if that is allowed.

    Else a ConfigError says what is within reach.
    """
    saved = savings_of(model, config)
    if or_modules and config.budget != "modules" and not saved.reaches(config.target_sparsity):
        logger.warning(
            "skipping saves at most %.1f%% of %s on this model, not %.1f%%: the target counts "
            "modules instead; choose the unit with --budget",
            100 * max(0.0, saved.largest),
            BUDGET_NOUNS[config.budget],
            100 * config.target_sparsity,
        )
        return dataclasses.replace(config, budget="modules")
    saved.check_reach(config.target_sparsity)
    return config


def start_routers(model: Any, config: TrainConfig, text: Tensor) -> None:
    """Initialise new routers and stand-ins in place, as the config says, on text [N, T]."""
    stage = config.router_stage
    if stand_ins(model):
        with advancing("fitting stand-ins", announced=True) as advance:
            fit_stand_ins(model, subsample_rows(text, stage.fit_tokens), on_step=advance)
    if stage.start == "keep":
        for router in routers(model).values():
            set_constant(router, stage.start_margin)


def savings_of(model: nn.Module, config: TrainConfig) -> Savings:
    """Return what each site of a model saves, in the unit of a run's budget and over its rows.

    Time needs a machine that was profiled; else it raises ConfigError.
    """
    context = (config.data.block_size + 1) / 2
    return savings(model, config.budget, context, config.budget_time)


def set_to_target(model: nn.Module, config: TrainConfig) -> None:
    """Set a calibrated model to the target of a run, as far as its curve in that unit reaches.

    A model without a curve in the run's unit stays at its own target, until stage `lora` moves it.
    """
    curves = routing_state(model).curves
    if curves is not None and config.budget in curves.by_budget:
        near = clamp_to_curve(model, config.target_sparsity, config.budget)
        set_sparsity(model, near, budget=config.budget)
