"""What transformers' Trainer is given: a stage's settings as `TrainingArguments`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations import integration_utils

from skipgpt.config import TrainConfig
from skipgpt.errors import ConfigError
from skipgpt.system.distributed import launched
from skipgpt.training.loop.sampler import share_of_step
from skipgpt.training.stages import StagePlan

_TRACKERS = {
    "azure_ml": ("azureml", "azureml-sdk"),
    "comet_ml": ("comet", "comet-ml"),
    "flyte": ("flytekit", "flytekit"),
}
"""Trackers with another name in transformers' availability check, or of their package."""


def check_schedule(name: str) -> None:
    """Raise ConfigError if transformers has no such learning-rate schedule."""
    try:
        SchedulerType(name)
    except ValueError as error:
        raise ConfigError(
            "reading schedule",
            got=repr(name),
            expected="one of " + ", ".join(kind.value for kind in SchedulerType),
        ) from error


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError if a tracker is unknown to transformers or not installed."""
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            raise ConfigError(
                "reading report_to", got=repr(name), expected="one of " + ", ".join(sorted(known))
            )
        module, package = _TRACKERS.get(name, (name, name))
        if not getattr(integration_utils, f"is_{module}_available")():
            raise ConfigError(
                "reading report_to",
                got=f"{name!r}, which is not installed",
                expected="trackers that are",
                todo=f"run: pip install {package}",
            )


def keep_events(callbacks: Sequence[Any], folder: Path) -> None:
    """Point TensorBoard's callback to a folder that outlives the run; before the trainer begins.

    transformers puts events beside the resume states. `TENSORBOARD_LOGGING_DIR` takes precedence.
    """
    for callback in callbacks:
        if isinstance(callback, integration_utils.TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(folder)


def training_arguments(
    plan: StagePlan, config: TrainConfig, folder: Path, device: torch.device
) -> TrainingArguments:
    """Return transformers' arguments for a stage; resume states go to the folder.

    Raises ConfigError at a schedule or a tracker that transformers does not know, and as
    `share_of_step` does.
    """
    check_schedule(plan.schedule)
    check_trackers(config.report_to)
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
        # Every parameter is used in every step, except MLP routers if a layer decides as one.
        ddp_find_unused_parameters=config.router.decides == "layer",
        ddp_broadcast_buffers=False,
    )


@contextmanager
def counted_as_adapted(model: Any) -> Iterator[None]:
    """Make transformers accept routers as the adapter that it requires on a quantised model."""
    name = "_hf_peft_config_loaded"
    before = getattr(model, name, False)
    setattr(model, name, before or getattr(model, "is_quantized", False))
    try:
        yield
    finally:
        setattr(model, name, before)
