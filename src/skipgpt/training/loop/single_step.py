"""One optimizer step of a stage, outside a run: for benchmarks, which time what `train` runs."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from skipgpt.config import Stage, TrainConfig
from skipgpt.model.state import Execution
from skipgpt.model.surgery import routed_layers
from skipgpt.training.stages import optimizer_groups, plan, prepare


def single_step(
    model: Any, stage: Stage, config: TrainConfig, ids: Tensor, kind: Execution | None = None
) -> Callable[[], Tensor]:
    """Prepare a model for a stage and return its optimizer step on one batch, for repeated calls.

    The learning rate stays at the peak of the stage's schedule; nothing is logged or saved. The
    model is changed in place; without routers, stage `lora` trains the dense model. The batch
    [B, T], on the model's device, is its own labels. The forward's execution is that of the stage
    if no kind is given.

    Example:
        step = single_step(model, "lora", recipe("default"), ids)
        losses = [step().item() for _ in range(10)]
    """
    import torch
    from transformers import Trainer

    from skipgpt.training.loop.arguments import training_arguments
    from skipgpt.training.loop.trainer import RoutingTrainer

    stage_plan = plan(stage, config)
    stage_plan = dataclasses.replace(stage_plan, execution=kind or stage_plan.execution)
    model = prepare(model, stage, config)
    with tempfile.TemporaryDirectory() as folder:  # required by transformers, but not used
        args = training_arguments(stage_plan, config, Path(folder), model.device)
        if routed_layers(model):
            trainer = RoutingTrainer(plan=stage_plan, config=config, model=model, args=args)
        else:
            trainer = Trainer(model=model, args=args)
    optimizer = torch.optim.AdamW(optimizer_groups(model, config))
    batch = {"input_ids": ids, "labels": ids}

    def step() -> Tensor:
        samples, items = trainer.get_batch_samples(iter([batch]), 1, ids.device)
        loss: Tensor = trainer.training_step(model, samples[0], items)
        if config.max_grad_norm > 0:
            trainer.accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        trainer.callback_handler.on_step_end(trainer.args, trainer.state, trainer.control)
        return loss

    return step
