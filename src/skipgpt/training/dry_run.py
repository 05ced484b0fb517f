"""Estimates what a run would take, in seconds and without weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from skipgpt.config import Budget, Stage, TrainConfig
from skipgpt.cost import Forward, lora_flops, savings, training_flops, work
from skipgpt.cost.memory import Held, Layout, Memory, memory
from skipgpt.cost.stored import in_dtype, stored
from skipgpt.fitting.fit import input_bytes, layer_groups
from skipgpt.fitting.stand_ins import layers_at_once, sum_bytes
from skipgpt.model.base import parse_device
from skipgpt.model.families.parameter_names import kind_of
from skipgpt.model.surgery import (
    add_routers,
    hidden_size,
    routed_layers,
    routers,
    stand_ins,
    train_only,
)
from skipgpt.system.device_profile import typical
from skipgpt.training import distillation
from skipgpt.training.fit_stage import check_alone
from skipgpt.training.loop.sampler import StepPartition, share_of_step
from skipgpt.training.needs import DryRun, HostMemory, StageNeeds
from skipgpt.training.stages import StagePlan, plan, prepare


def dry_run(
    base: Any,
    config: TrainConfig,
    *,
    layout: Layout,
    processes: int,
    dtype: torch.dtype,
    device: str = "cuda",
) -> DryRun:
    """Estimate what training takes on `processes` devices, one process per device.

    `layout` says how the model is spread over them; `base` is the transformers config of the base
    model. Stage `lora` is assumed to skip its target sparsity where it packs. The speed of a
    typical device turns FLOPs into time.

    Raises:
        ConfigError: the processes cannot share the rows of a step equally, or torch knows no such
            device.
        UnsupportedModelError: routers do not fit into the base model.

    Example:
        base = AutoConfig.from_pretrained("meta-llama/Llama-3.1-8B")
        dry_run(base, recipe("paper"), layout="fsdp2", processes=8, dtype=torch.bfloat16)
    """
    flops = typical(parse_device(device)).flops
    check_alone(config, processes)
    needs = [
        _fit(base, config, dtype, flops)
        if stage == "fit"
        else _stage(base, stage, config, layout, processes, dtype, flops)
        for stage in config.stages
    ]
    return DryRun(
        layout,
        processes,
        config.data.block_size,
        str(dtype).removeprefix("torch."),
        config.activation_checkpointing,
        flops,
        needs[0].held.parameters * float(dtype.itemsize),
        tuple(needs),
    )


def _stage(
    base: Any,
    stage: Stage,
    config: TrainConfig,
    layout: Layout,
    processes: int,
    dtype: torch.dtype,
    device_flops: float,
) -> StageNeeds:
    stage_plan = plan(stage, config, processes=processes, lockstep=layout == "zero3")
    share = share_of_step(config.batch_size, config.accumulation, processes)
    model, held, needs = _memory(base, stage, config, share.rows, layout, processes, dtype)
    flops = processes * share.parts * _forward_flops(model, stage_plan, config, share)
    seconds = flops / processes / device_flops
    return StageNeeds(
        stage=stage,
        execution=stage_plan.execution,
        held=held,
        memory=needs,
        rows=share.rows,
        parts=share.parts,
        step_flops=flops,
        seconds=seconds,
        hours=stage_plan.steps * seconds / 3600,
    )


def _fit(base: Any, config: TrainConfig, dtype: torch.dtype, device_flops: float) -> StageNeeds:
    """Stage `fit`: forwards for stand-ins, forwards and backwards for costs and for each round."""
    stage, rows, tokens = config.fit_stage, config.fit_stage.batch_size, config.data.block_size
    model, held, needs = _memory(base, "fit", config, rows, "single", 1, dtype)
    groups = [len(layers) for layers in layer_groups(model, stage.tokens)]
    width, sums = hidden_size(model), 0
    if stand_ins(model):
        sums = min(sum(groups), layers_at_once(width)) * sum_bytes(width)
    forward = Forward(rows, tokens, logits=tokens)
    step = training_flops(model, forward, "router")
    step += (stage.draws - 1) * step / 2
    steps = len(groups) * stage.tokens / (rows * tokens)
    dense = work(model, forward).flops
    # A round has one more backward pass than costs have, and a dense forward.
    rounds = stage.rounds * steps * (step + (step - dense) / stage.draws + dense)
    fits = (2 + stage.rounds) * stage.stand_in_tokens / (rows * tokens) * dense
    seconds = (steps * step + rounds + fits) / device_flops
    return StageNeeds(
        stage="fit",
        execution="gated",
        held=held,
        memory=needs,
        rows=rows,
        parts=1,
        step_flops=step,
        seconds=step / device_flops,
        hours=seconds / 3600,
        host_memory=HostMemory(sums, max(groups) * input_bytes(model, stage.tokens)),
    )


def _memory(
    base: Any,
    stage: Stage,
    config: TrainConfig,
    rows: int,
    layout: Layout,
    processes: int,
    dtype: torch.dtype,
) -> tuple[Any, Held, Memory]:
    """Return the model of a stage on the meta device, and what it holds, in all and per device."""
    tokens, width = config.data.block_size, base.get_text_config().vocab_size

    def build(of: Any) -> Any:
        return _on_meta(of, stage, config, of.dtype)

    typed = in_dtype(base, dtype)
    model = build(typed)
    kept = stored(typed, build, rows, tokens, samples=stage != "lora")
    # Stage fit trains nothing; `stored` traced it with gradients at the gates.
    held = _held(model.requires_grad_(False) if stage == "fit" else model)
    activations = kept.total(config.activation_checkpointing and stage != "fit")
    count = rows * tokens
    logits = 2 * count * width * 4.0
    if plan(stage, config).distill and stage != "fit":
        # Of teacher, student and slope; log-probabilities, which `stored` traces, are not kept.
        logits = count * width * (3.0 * dtype.itemsize - 4)
        logits += distillation.BUFFERS * min(distillation.ROWS, count) * width * 4.0
    needs = memory(held, layout, processes, activations=activations, logits=logits)
    return model, held, needs


def _on_meta(base: Any, stage: Stage, config: TrainConfig, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base, dtype=dtype)
        add_routers(model, config.router)
        if stage == "fit":  # gates have gradients, as if routers trained
            train_only(model, "router")
            return model.eval()
        once = dataclasses.replace(config, activation_checkpointing=False)
        return prepare(model.train(), stage, once)


def _held(model: nn.Module) -> Held:
    named = dict(model.named_parameters())
    base = {name: p for name, p in named.items() if kind_of(name) == "base"}
    trained = [p for p in named.values() if p.requires_grad]
    layers = [
        sum(p.nbytes for name, p in layer.named_parameters() if kind_of(name) == "base")
        for layer in routed_layers(model)
    ]
    weights = sum(p.nbytes for p in base.values())
    # In stage lora routers are frozen, so they count as weights like the base's.
    resting = sum(p.nbytes for name, p in named.items() if name not in base and not p.requires_grad)
    return Held(
        parameters=sum(p.numel() for p in base.values()),
        weight_bytes=weights + resting,
        layer_bytes=max(layers),
        outer_bytes=weights - sum(layers),
        trained=sum(p.numel() for p in trained),
        trained_tensors=len(trained),
    )


def _forward_flops(
    model: nn.Module, stage_plan: StagePlan, config: TrainConfig, share: StepPartition
) -> float:
    """Return the FLOPs of a process's forward and backward, extra forwards included."""
    stage, tokens = stage_plan.stage, config.data.block_size
    forward = Forward(share.rows, tokens, logits=tokens)
    keep = None
    if stage_plan.execution == "sparse":  # every site skips alike; FLOPs stand for seconds
        unit: Budget = "modules" if config.budget == "modules" else "flops"
        skipped = savings(model, unit, (tokens + 1) / 2).share_of_sites(config.target_sparsity)
        keep = dict.fromkeys(routers(model), 1 - skipped)
    lora = 0.0 if stage == "router" else lora_flops(model, forward, keep)
    flops = training_flops(model, forward, stage, keep, lora)
    again = work(model, Forward(share.rows, tokens, logits=0), keep)
    if config.activation_checkpointing:
        flops += again.flops
    if stage_plan.distill:  # the teacher's forward
        flops += work(model, forward).flops
    if stage_plan.trains_routers and share.parts > 1:  # their sparsity is measured beforehand
        flops += again.flops
    return flops
