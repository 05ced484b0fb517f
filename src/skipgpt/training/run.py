"""A training run: base model, routers, stages, calibration, checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from skipgpt.checkpoint.folder import is_checkpoint, read_info
from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, write
from skipgpt.checkpoint.tensors import trained_tensors
from skipgpt.config import Stage, TrainConfig, recipe
from skipgpt.config.settings import to_dict
from skipgpt.data import load_blocks
from skipgpt.errors import ConfigError
from skipgpt.evaluation.perplexity import Perplexity
from skipgpt.model.base import choose_dtype, load_base
from skipgpt.model.loading.bitsandbytes import check_quantization, quantization_of
from skipgpt.model.loading.gguf import is_gguf
from skipgpt.model.loading.identity import digest_of_settings
from skipgpt.model.loading.limits import check_rows
from skipgpt.model.lora import check_targets
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import RuleAt
from skipgpt.system.distributed import first_alone, init, layout, load_whole
from skipgpt.system.folder_lock import writing_to
from skipgpt.system.progress import advancing
from skipgpt.system.stopping import stoppable
from skipgpt.training.fit_stage import check_fit, run_fit
from skipgpt.training.launcher import check_launcher, check_whole
from skipgpt.training.measurement import Passes
from skipgpt.training.router_init import savings_of, set_to_target
from skipgpt.training.run_record import (
    RESUME,
    RunSnapshot,
    begin_run,
    check_folder,
    compare_run,
    finish_stage,
    finished_stages,
    forget_states,
    held_out_of,
    latest_state,
)
from skipgpt.training.run_stage import run_stage
from skipgpt.training.stages import plan

logger = logging.getLogger("skipgpt")


@dataclass(frozen=True)
class TrainResult:
    """What a run produced.

    Attributes:
        info: info of the checkpoint that was written.
        held_out: loss and sparsity on held-out text: `dense`, then one entry per stage.
        folder: folder of the checkpoint.
        seconds_measuring: seconds of this call spent on the losses in `held_out`.
    """

    info: CheckpointInfo
    held_out: dict[str, Perplexity]
    folder: str
    seconds_measuring: float = 0.0

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
        base: hub id, folder, GGUF file, `nano`, or a checkpoint to train further stages of.
        data: sources of text; see `skipgpt.data.read_documents`.
        out: the folder of the checkpoint.
        config: everything else; see `skipgpt.config.recipe`.
        device: where to train.
        dtype: dtype of the base model.
        quantize: hold the base's weights in `8bit` or `4bit`, through bitsandbytes; if None, as
            they are stored, or as the checkpoint `base` was trained.
        resume: continue where an earlier call with the same arguments stopped.
        overwrite: replace what is in `out`.
        rule: decision rule while routers train, by the share of the stage that is done; Gumbel
            sampling (the paper) if None.

    Raises:
        SkipGPTError: on any failure; `out` then holds the last good state.

    Example:
        skipgpt.train("nano", ["stdlib"], "out/nano-25", skipgpt.recipe("default"))
    """
    out = Path(out)
    check_launcher(device)
    device = init(device)
    kept = RunSnapshot.of(out, resume)
    with stoppable(f"training into {out}", kept.told), advancing(), writing_to(out):
        return _train(base, data, out, config, device, dtype, quantize, resume, overwrite, rule)


def _train(
    base: str,
    data: list[str],
    out: Path,
    config: TrainConfig,
    device: str,
    dtype: str,
    quantize: str | None,
    resume: bool,
    overwrite: bool,
    rule: RuleAt | None,
) -> TrainResult:
    from skipgpt.training.loop.arguments import training_arguments

    torch.manual_seed(config.seed)
    check_quantization(quantize)
    check_fit(config, is_new=not is_checkpoint(base))
    check_folder(out, resume, overwrite)
    done = finished_stages(out) if resume else ()
    if resume:  # before a base is loaded in another quantization
        compare_run(out, {"quantize": quantize})
    in_pieces = layout() != "whole"
    home = device
    if in_pieces:  # loaded on the CPU, moved to the device shard by shard
        home, dtype = "cpu", str(choose_dtype(dtype, device)).removeprefix("torch.")
    model, tokenizer, info = _start(str(out) if done else base, config, home, dtype, quantize)
    check_whole(quantization_of(model))
    config = _with_routers_of(model, config)
    savings_of(model, config).check_reach(config.target_sparsity)
    blocks = load_blocks(data, tokenizer, config.data, train_tokens=config.train_tokens)
    check_rows("reading the text", model, tokenizer, blocks.train, blocks.held_out)
    facts = {
        "base": base,
        "data": data,
        "config": to_dict(config),
        "base_weights": info.fingerprint,
        "base_settings": digest_of_settings(info.base_settings),
        "dtype": str(model.dtype),
        "quantize": quantize,
        "data_fingerprint": blocks.fingerprint,
        "documents": {"train": blocks.documents[0], "held_out": blocks.documents[1]},
    }
    trained = [each for each in config.stages if each != "fit"]
    for each in trained:  # rejects bad settings before anything is overwritten
        training_arguments(plan(each, config), config, out, torch.device(device))
    if resume:
        compare_run(out, facts)
    else:
        used = ["bitsandbytes"] * bool(quantization_of(model)) + ["gguf"] * is_gguf(info.base)
        rows = {"train": len(blocks.train), "train_inside_a_document": blocks.inside}
        begin_run(out, facts | {"rows": rows}, *used)
    found, left = held_out_of(out), [stage for stage in config.stages if stage not in done]
    fresh = not is_checkpoint(base) and not done and latest_state(out / RESUME / left[0]) is None
    passes = Passes(config, blocks, out)
    begin = functools.partial(passes.before_stages, start=fresh and "fit" not in config.stages)
    if not (in_pieces and left):
        begin(model)
    for stage in left:
        if in_pieces and stage != left[0]:  # the next stage cannot adapt a sharded model
            load_whole()
            model, tokenizer, info = _start(str(out), config, home, dtype, quantize)
        if stage == "fit":
            run_fit(model, config, blocks.train, out)
        else:
            model = run_stage(
                model,
                stage,
                config,
                blocks,
                out,
                rule=rule,
                dense_loss=passes.dense.nll_per_token if passes.dense else None,
                device=device,
                begin=begin if in_pieces and stage == left[0] else None,
            )
        found[stage] = passes.after_stage(model, stage)
        info = _save_stage(model, stage, config, out, info, found[stage])
        finish_stage(out, stage, found[stage])
    forget_states(out)
    measured = {"dense": cast("Perplexity", passes.dense)}
    measured |= {stage: found[stage] for stage in config.stages}
    return TrainResult(info, measured, str(out), passes.seconds_measuring)


def _start(
    base: str, config: TrainConfig, device: str, dtype: str, quantize: str | None
) -> tuple[Any, Any, CheckpointInfo]:
    """Return the model to train, with routers, its tokenizer and its checkpoint info."""
    if is_checkpoint(base):
        _check_held(base, read_info(base).quantization, quantize)
        model, tokenizer = load(base, trainable=True, device=device, dtype=dtype)
        if routing_state(model).curve is not None:
            set_to_target(model, config)
        return model, tokenizer, read_info(base)
    model, tokenizer = load_base(base, device=device, dtype=dtype, quantize=quantize)
    _check_held(base, quantization_of(model), quantize)
    if "lora" in config.stages and not {"fit", "router", "joint"} & set(config.stages):
        raise ConfigError(
            "planning the stages",
            got=f"lora alone on the base model {base!r}",
            expected="routers to heal around",
            todo="train stage router first, or give a checkpoint as BASE",
        )
    if {"lora", "joint"} & set(config.stages):
        check_targets(model, config.lora_stage)
    add_routers(model, config.router)
    return model, tokenizer, describe(model, base, tokenizer=tokenizer)


def _check_held(base: str, found: str | None, wanted: str | None) -> None:
    """Refuse a quantization other than that of the stored base or of the trained routers."""
    if wanted not in (None, found):
        raise ConfigError(
            f"quantising the base {base!r} to {wanted}",
            got=f"one that is held in {found or 'another format'} already",
            expected="a base that is not quantised, or in the same kind; a checkpoint keeps the "
            "format that its routers were trained on",
            todo="leave out --quantize (quantize=None)",
        )


def _with_routers_of(model: Any, config: TrainConfig) -> TrainConfig:
    """Return the config with the router settings that the model has, as in its checkpoint.

    Raises:
        ConfigError: other settings were requested than the checkpoint was trained with.
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
        describe(model, info.base, fingerprint=info.fingerprint),
        base=info.base,
        base_settings=info.base_settings,
        revision=info.revision,
        recipe=config.recipe,
        stages=(*info.stages, stage),
        target_sparsity=config.target_sparsity,
        budget=config.budget,
        sparsity=measured.sparsity,
        keep=measured.keep_rates,
    )
    tensors = trained_tensors(model)
    return first_alone(write)(model, out, info, tensors, overwrite=True)
