"""One stage of a run: the trainer, its callbacks, where it resumes, and how it may end."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from skipgpt.config import Stage, TrainConfig
from skipgpt.data import Blocks
from skipgpt.errors import TrainingError
from skipgpt.model.state import Execution, execution
from skipgpt.routing.decision import RuleAt
from skipgpt.system.distributed import in_lockstep, is_first, layout, world_size
from skipgpt.system.hardware import wait_for
from skipgpt.system.mode import in_mode
from skipgpt.system.progress import advancing
from skipgpt.system.stopping import Stop
from skipgpt.training.loop.callbacks import (
    Beginning,
    FailureWatch,
    MetricsFile,
    Progress,
    StopRequest,
)
from skipgpt.training.run_record import (
    EVENTS,
    METRICS,
    RESUME,
    after_room_is_made,
    latest_state,
    steps_done,
)
from skipgpt.training.stages import plan, prepare

logger = logging.getLogger("skipgpt")


def run_stage(
    model: Any,
    stage: Stage,
    config: TrainConfig,
    blocks: Blocks,
    out: Path,
    rule: RuleAt | None = None,
    dense_loss: float | None = None,
    device: str | None = None,
    begin: Callable[[Any], None] | None = None,
) -> Any:
    """Train one stage, from its last saved state if there is one; return the trained model.

    Args:
        model: with routers; PEFT wraps it if LoRA trains.
        stage: what to train.
        config: the run.
        blocks: text.
        out: the folder of the run, for resume states and one line per log step in metrics.jsonl.
        rule: decision rule while routers train, by the share of the stage that is done; Gumbel
            sampling if None.
        dense_loss: loss of the base on held-out text, by which too high a loss is detected.
        device: where to train; the model's device if None.
        begin: called with the model once it is placed for training, sharded or not.

    Raises:
        TrainingError: writing to the disk failed.
        DivergedError: the loss is NaN or infinite.
        Stop: a stop was requested, and the state is saved.
    """
    from transformers import default_data_collator
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from skipgpt.training.loop.arguments import keep_events, training_arguments
    from skipgpt.training.loop.trainer import RoutingTrainer

    stage_plan = plan(stage, config, processes=world_size(), lockstep=in_lockstep())
    states, stop = out / RESUME / stage, StopRequest()
    resume_from = latest_state(states)
    done = steps_done(resume_from) if resume_from else 0
    with advancing(
        f"stage {stage}", unit="step", done=done, total=stage_plan.steps, announced=True
    ) as phase:
        # A stage draws the same numbers whether or not earlier ones ran in this process.
        torch.manual_seed(config.seed)
        model = prepare(model, stage, config)
        packs = stage_plan.execution == "sparse" and layout() == "whole"
        if stage == "lora" and resume_from is None and is_first() and packs:
            _log_speedup(model, config, blocks, out)
        where = model.device if device is None else torch.device(device)
        trainer = RoutingTrainer(
            plan=stage_plan,
            rule=rule,
            config=config,
            model=model,
            args=training_arguments(stage_plan, config, states, where),
            train_dataset=[{"input_ids": row, "labels": row} for row in blocks.train],
            data_collator=default_data_collator,
            callbacks=[
                MetricsFile(out / METRICS, stage),
                FailureWatch(stage, config.target_sparsity, dense_loss),
                Progress(phase, config.batch_size * config.accumulation * blocks.train.shape[1]),
                stop,
            ],
        )
        keep_events(trainer.callback_handler.callbacks, out / EVENTS / stage)
        if begin is not None:
            trainer.add_callback(Beginning(lambda model: trainer.with_changes(begin, model)))
        for printing in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printing)
        try:
            if resume_from and done >= stage_plan.steps:
                # Resumed at its end, transformers' Trainer would take one step too many.
                trainer.load_weights(resume_from)
                if begin is not None:
                    begin(model.eval())
            else:
                with stop.listening():
                    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"training stage {stage}, step {trainer.state.global_step}",
                got=str(error),
                expected="room on the disk and permission to write",
                todo=after_room_is_made(states),
            ) from error
        if stop.received:
            at = f"{stop.received} at step {trainer.state.global_step} of {stage_plan.steps}"
            raise Stop(at, f"training stage {stage}")
        return trainer.model.eval()


def _log_speedup(model: Any, config: TrainConfig, blocks: Blocks, out: Path) -> None:
    """Log how much faster a healing step is than a dense one, also in metrics.jsonl."""
    ratio = _speedup(model, blocks.train[: config.batch_size])
    with (out / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": "lora", "step": 0, "speedup_over_dense": ratio}) + "\n")
    logger.info("stage lora: a sparse step runs at %.2fx dense speed", ratio)


@advancing("timing steps of stage lora beside dense ones")
def _speedup(model: Any, batch: Tensor) -> float:
    """Return dense over sparse seconds of a forward and backward on token ids [B, T].

    They are medians of three alternating runs, after a pair that warms up.
    """
    times: dict[Execution, list[float]] = {"dense": [], "sparse": []}
    device = next(model.parameters()).device
    batch = batch.to(device)
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with in_mode(model, training=True), forked:
        for _ in range(4):
            for kind, seconds in times.items():
                wait_for(device)
                started = time.perf_counter()
                with execution(model, kind):
                    model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
                wait_for(device)
                seconds.append(time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    return statistics.median(times["dense"][1:]) / statistics.median(times["sparse"][1:])
