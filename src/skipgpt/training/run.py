"""The chain: base model, routers, stages, calibration, checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skipgpt.baselines.units import Unit
from skipgpt.checkpoint import describe, is_checkpoint, load, read_info, save
from skipgpt.checkpoint_info import CheckpointInfo
from skipgpt.config import Stage, TrainConfig, recipe
from skipgpt.data import Blocks, load_blocks
from skipgpt.errors import ConfigError
from skipgpt.evaluation.calibrate import calibrate, cut
from skipgpt.evaluation.perplexity import Perplexity, perplexity
from skipgpt.model.base import load_base
from skipgpt.model.lora import check_targets
from skipgpt.model.quantized import check_quantization, quantization_of
from skipgpt.model.surgery import add_routers
from skipgpt.model.trace import execution, routing_state, set_sparsity, within_reach
from skipgpt.routing.decision import RuleAt
from skipgpt.settings import to_dict
from skipgpt.training.callbacks import search_bar
from skipgpt.training.run_folder import (
    RESUME,
    begin_run,
    check_folder,
    compare_run,
    finish_stage,
    finished_stages,
    held_out_of,
    note_measured,
    note_static_order,
    static_order,
)
from skipgpt.training.run_stage import run_stage
from skipgpt.training.stages import plan
from skipgpt.training.start import start_routers, static_solution
from skipgpt.training.static_blend import blend_with_static

logger = logging.getLogger("skipgpt")


@dataclass(frozen=True)
class TrainResult:
    """What a run produced.

    Attributes:
        info: of the checkpoint that was written.
        held_out: loss and sparsity on held-out text: `dense`, then one entry a stage.
        folder: where the checkpoint lies.
        static_order: the greedy static removal that routers were blended with, if they were.
    """

    info: CheckpointInfo
    held_out: dict[str, Perplexity]
    folder: str
    static_order: tuple[Unit, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def train(
    base: str,
    data: list[str],
    out: str | Path,
    config: TrainConfig,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    rule: RuleAt | None = None,
) -> TrainResult:
    """Train routers, heal with LoRA, calibrate, and write a checkpoint after each stage.

    Args:
        base: hub id, folder, `nano`, or a checkpoint to train further stages of.
        data: sources of text; see `skipgpt.data.read_documents`.
        out: the folder of the checkpoint.
        config: everything else; see `skipgpt.config.recipe`.
        device: where to train.
        dtype: of the base model.
        quantize: hold the base's weights in `8bit` or `4bit`, through bitsandbytes; where None,
            as they are stored, or as the checkpoint BASE was trained.
        resume: go on from where an earlier call with the same arguments stopped.
        overwrite: replace what is in `out`.
        rule: how decisions are made while routers train, by the share of the stage that is done;
            Gumbel samples (the paper) where None.

    Raises:
        SkipGPTError: with whatever went wrong; `out` then holds the last good state.

    Example:
        skipgpt.train("nano", ["stdlib"], "out/nano-25", skipgpt.recipe("default"))
    """
    from skipgpt.training.arguments import training_arguments

    out = Path(out)
    torch.manual_seed(config.seed)
    check_quantization(quantize)
    check_folder(out, resume, overwrite)
    done = finished_stages(out) if resume else ()
    if resume:  # before a base is loaded that is held in another way
        compare_run(out, {"quantize": quantize})
    model, tokenizer, info = _start(str(out) if done else base, config, device, dtype, quantize)
    config = _with_routers_of(model, config)
    blocks = load_blocks(data, tokenizer, config.data)
    facts = {
        "base": base,
        "data": data,
        "config": to_dict(config),
        "dtype": str(model.dtype),
        "quantize": quantize,
        "data_fingerprint": blocks.fingerprint,
        "documents": {"train": blocks.documents[0], "held_out": blocks.documents[1]},
    }
    for stage in config.stages:  # refuses what transformers does not know before anything is lost
        training_arguments(plan(stage, config), config, out, model.device)
    if resume:
        compare_run(out, facts)
    else:
        begin_run(out, facts, *(["bitsandbytes"] if quantization_of(model) else []))
    held = cut(blocks.held_out, config.data.evaluation_tokens)
    measured: dict[str, Perplexity] = {}
    found = held_out_of(out)
    order: list[Unit] = static_order(out)
    if not is_checkpoint(base) and not done:
        with search_bar() as advance:
            order = start_routers(model, config, blocks.train, advance, order)
        note_static_order(out, order)
    with execution(model, "dense"):
        measured["dense"] = perplexity(model, held)
    note_measured(out, "dense", measured["dense"])
    for stage in config.stages:
        if stage in done:
            measured[stage] = found[stage]
        else:
            dense_loss = measured["dense"].nll_per_token
            model = run_stage(model, stage, config, blocks, out, rule, dense_loss)
            calibration = cut(blocks.calibration, config.data.calibration_tokens)
            if stage != "lora" and config.router_stage.static_blend:
                order = order or _search_static(model, config, blocks)
                strength = blend_with_static(model, order, calibration, config.target_sparsity)
                logger.info("stage router: blended with static removal at strength %g", strength)
            calibrate(model, calibration, target=config.target_sparsity)
            measured[stage] = perplexity(model, held)
            info = _save_stage(model, stage, config, out, info, measured[stage])
            finish_stage(out, stage, measured[stage])
    shutil.rmtree(out / RESUME, ignore_errors=True)
    return TrainResult(info, measured, str(out), tuple(order))


def _start(
    base: str, config: TrainConfig, device: str, dtype: str, quantize: str | None
) -> tuple[Any, Any, CheckpointInfo]:
    """The model to train, routed, and what it is."""
    if is_checkpoint(base):
        _check_held(base, read_info(base).quantization, quantize)
        model, tokenizer = load(base, trainable=True, device=device, dtype=dtype)
        if routing_state(model).curve is not None:
            set_sparsity(model, within_reach(model, config.target_sparsity))
        return model, tokenizer, read_info(base)
    model, tokenizer = load_base(base, device=device, dtype=dtype, quantize=quantize)
    _check_held(base, quantization_of(model), quantize)
    if "lora" in config.stages and not {"router", "joint"} & set(config.stages):
        raise ConfigError(
            "planning the stages",
            got=f"lora alone on the base model {base!r}",
            expected="routers to heal around",
            todo="train stage router first, or give a checkpoint as BASE",
        )
    if set(config.stages) != {"router"}:
        check_targets(model, config.lora_stage)
    add_routers(model, config.router)
    return model, tokenizer, describe(model, base)


def _check_held(base: str, found: str | None, wanted: str | None) -> None:
    """Refuse another kind than that in which the base is stored or the routers were trained."""
    if wanted not in (None, found):
        raise ConfigError(
            f"quantising the base {base!r} to {wanted}",
            got=f"one that is held in {found or 'another format'} already",
            expected="a base that is not quantised, or in the same kind; a checkpoint keeps the "
            "format that its routers were trained on",
            todo="leave out --quantize (quantize=None)",
        )


def _with_routers_of(model: Any, config: TrainConfig) -> TrainConfig:
    """The config with the routers that the model has, which a checkpoint brings along.

    Raises:
        ConfigError: others were asked for than the checkpoint was trained with.
    """
    has, asked = routing_state(model).config, config.router
    if asked not in (has, recipe("paper").router, recipe("default").router):
        raise ConfigError(
            "training a checkpoint further",
            got=f"other routers than it has: {asked}",
            expected=f"{has}",
            todo="leave router.… out, or start from the base model",
        )
    if asked.kv != has.kv:
        logger.info('keys and values stay "%s", as the checkpoint was trained', has.kv)
    return dataclasses.replace(config, router=has)


def _save_stage(
    model: Any,
    stage: Stage,
    config: TrainConfig,
    out: Path,
    info: CheckpointInfo,
    measured: Perplexity,
) -> CheckpointInfo:
    info = dataclasses.replace(
        describe(model, info.base),
        base=info.base,
        revision=info.revision,
        fingerprint=info.fingerprint,
        recipe=config.recipe,
        stages=(*info.stages, stage),
        target_sparsity=config.target_sparsity,
        sparsity=measured.sparsity,
        keep=measured.keep_rates,
    )
    return save(model, out, info, overwrite=True)


def _search_static(model: Any, config: TrainConfig, blocks: Blocks) -> list[Unit]:
    text = cut(blocks.train, config.router_stage.static_tokens)
    with search_bar() as advance:
        return static_solution(model, text, config.target_sparsity, advance)
