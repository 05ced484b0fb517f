"""Resume states of a trainer: what trains and its optimizer state, both unsharded.

A state does not depend on how many processes made it, or on how the model was sharded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer

from skipgpt.config import TrainConfig
from skipgpt.errors import DivergedError, TrainingError
from skipgpt.model.state import routing_state
from skipgpt.routing.decision import Threshold
from skipgpt.system.distributed import by_first
from skipgpt.system.sharded import assign, full_tensor
from skipgpt.training.loop.optimizer_state import (
    gathered_from_zero,
    gathered_state,
    scatter_state,
    scatter_to_zero,
    sync_weights,
)
from skipgpt.training.run_record import after_room_is_made
from skipgpt.training.stages import StagePlan, optimizer_groups

WEIGHTS, OPTIMIZER, SCHEDULER = "trained.safetensors", "optimizer.pt", "scheduler.pt"
THRESHOLD = "threshold"
"""Beside the trained weights: it follows the budget while LoRA trains."""


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with resume states that leave out the base model."""

    plan: StagePlan
    config: TrainConfig
    optimizer: torch.optim.Optimizer | None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what trains, unsharded, and nothing of the base model."""
        trained = {
            name: full_tensor(parameter).cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        if broken := [name for name, tensor in trained.items() if not tensor.isfinite().all()]:
            raise DivergedError(
                f"saving step {self.state.global_step} of stage {self.plan.stage}",
                got=f"NaN or infinite values in {len(broken)} of {len(trained)} tensors, "
                f"{broken[0]} first",
                expected="finite weights",
                todo="the state saved before is kept; start again with a lower learning rate "
                "(--lr) and --overwrite",
            )
        rule = routing_state(self.model).rule
        if not self.plan.trains_routers and isinstance(rule, Threshold):
            trained[THRESHOLD] = torch.tensor(rule.value, dtype=torch.float64)
        by_first(lambda: self._save(output_dir, trained))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state_dict, folder / WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a resume state, whole or not at all.

        Raises TrainingError if writing fails; it says what is kept.
        """
        step, states = self.state.global_step, Path(self.args.output_dir)
        try:
            super()._save_checkpoint(model, trial)
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            # On a full disk torch names files of its own; otherwise a process has ended.
            of_disk = "inline_container" in str(error) or "iostream" in str(error)
            if isinstance(error, RuntimeError) and not of_disk:
                raise
            shutil.rmtree(states / f"checkpoint-{step}", ignore_errors=True)
            raise TrainingError(
                f"saving step {step} of stage {self.plan.stage} below {states}",
                got=" ".join(str(error).split()),
                expected="room on the disk and permission to write",
                todo=after_room_is_made(states),
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the state of the optimizer unsharded, and that of the scheduler."""
        if self.is_deepspeed_enabled:
            groups = optimizer_groups(self.model, self.config)
            state = gathered_from_zero(self.optimizer, groups)
        else:
            state = gathered_state(self.optimizer)

        def write() -> None:
            for name, each in ((OPTIMIZER, state), (SCHEDULER, self.lr_scheduler.state_dict())):
                # Through a file of Python's: of a full disk torch's own raises a bare RuntimeError.
                with Path(output_dir, name).open("wb") as file:
                    torch.save(each, file)

        by_first(write)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """Prepare as transformers does, then load what was saved, sharded as it is now."""
        prepared: tuple[Any, Any] = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            state = Path(resume_from_checkpoint)
            self.load_weights(state)
            saved = torch.load(state / OPTIMIZER, map_location="cpu", weights_only=True)
            if self.is_deepspeed_enabled:
                scatter_to_zero(self.optimizer, optimizer_groups(self.model, self.config), saved)
            else:
                scatter_state(self.optimizer, saved)
            self.lr_scheduler.load_state_dict(torch.load(state / SCHEDULER, weights_only=True))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: weights are loaded later, once the model is sharded."""

    def with_changes(self, change: Callable[[Any], None], model: Any) -> None:
        """Change weights of the model that is about to train."""
        change(model)
        if self.is_deepspeed_enabled:  # which trains its own copies
            sync_weights(optimizer_groups(self.model, self.config))

    def load_weights(self, state: Path) -> None:
        """Load the trained weights of a resume state, and the threshold of stage lora."""
        named, saved = dict(self.model.named_parameters()), load_file(state / WEIGHTS)
        if (value := saved.pop(THRESHOLD, None)) is not None:
            routing_state(self.model).rule = Threshold(value.item())
        for name, tensor in saved.items():
            assign(named[name], tensor)
