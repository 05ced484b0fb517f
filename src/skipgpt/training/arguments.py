"""A stage's settings as transformers' `TrainingArguments`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from skipgpt.config import TrainConfig
from skipgpt.errors import ConfigError
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
        device: where the model lies.
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
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
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
    )
