"""A stage's settings as transformers' `TrainingArguments`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from skipgpt.config import TrainConfig
from skipgpt.errors import ConfigError
from skipgpt.processes import launched
from skipgpt.training.row_order import share_of_step
from skipgpt.training.stages import StagePlan


def check_schedule(name: str) -> None:
    """Raise if transformers has no such schedule of the learning rate.

    Raises:
        ConfigError: it has not.
    """
    try:
        SchedulerType(name)
    except ValueError as error:
        raise ConfigError(
            "reading schedule",
            got=repr(name),
            expected="one of " + ", ".join(kind.value for kind in SchedulerType),
        ) from error


def training_arguments(
    plan: StagePlan, config: TrainConfig, folder: Path, device: torch.device
) -> TrainingArguments:
    """What transformers needs to know.

    Args:
        plan: the stage.
        config: the run.
        folder: where resume states go.
        device: where it trains.

    Raises:
        ConfigError: transformers does not know the schedule or a tracker, or the processes of the
            run cannot share the rows of a step equally.
    """
    check_schedule(plan.schedule)
    try:
        get_reporting_integration_callbacks(list(config.report_to))
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(
            "reading report_to",
            got=str(error).splitlines()[0],
            expected="trackers that transformers knows and that are installed",
        ) from error
    on_cpu = device.type == "cpu"
    share = share_of_step(config.batch_size, config.accumulation, launched())
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=share.rows,
        gradient_accumulation_steps=share.parts,
        lr_scheduler_type=plan.schedule,
        warmup_steps=plan.warmup,
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.log_every,
        save_steps=min(config.save_every, plan.steps),
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        use_cpu=on_cpu,
        logging_nan_inf_filter=False,
        # Every module takes part in every step, but for MLP routers that attention's speak for.
        ddp_find_unused_parameters=config.router.decides == "layer",
        ddp_broadcast_buffers=False,
    )
