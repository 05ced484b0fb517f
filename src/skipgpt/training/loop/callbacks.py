"""Trainer callbacks: metrics file, warnings, progress, an action at the start, stop requests."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from skipgpt.analysis.failures import failures
from skipgpt.system.atomic import staged
from skipgpt.system.distributed import any_rank
from skipgpt.system.mode import in_mode
from skipgpt.system.progress import Phase
from skipgpt.system.stopping import handling, stop_now
from skipgpt.training.loop.routing_metrics import nested

logger = logging.getLogger("skipgpt")


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends one JSON line per log step to `metrics.jsonl`."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that a killed run took after its last saved state."""
        if not (state.is_world_process_zero and self.path.exists()):
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill can leave the last line incomplete.
        entries = [(json.loads(line), line) for line in lines if line.endswith("}\n")]
        kept = [
            line
            for entry, line in entries
            if entry["stage"] != self.stage or entry["step"] <= state.global_step
        ]
        with staged(self.path.parent) as folder:
            (folder / self.path.name).write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write what was logged."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        line: dict[str, object] = {"stage": self.stage, "step": state.global_step}
        line |= nested({name: value for name, value in logs.items() if name != "epoch"})
        line["seconds"] = round(time.monotonic() - self.started, 3)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class FailureWatch(TrainerCallback):  # type: ignore[misc]
    """Warns of each known failure, once per stage, and says what to do."""

    def __init__(self, stage: str, target: float, dense_loss: float | None) -> None:
        self.stage, self.target, self.dense_loss = stage, target, dense_loss
        self.lines: list[dict[str, object]] = []
        self.warned: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Check the newest lines for failures of routers that train."""
        if not logs or "loss" not in logs or self.stage == "lora":
            return
        self.lines.append({"step": state.global_step, **nested(logs)})
        for failure in failures(self.lines, state.max_steps, self.target, self.dense_loss):
            if failure.name not in self.warned:
                self.warned.add(failure.name)
                logger.warning("stage %s, step %d: %s", self.stage, state.global_step, failure)


class Progress(TrainerCallback):  # type: ignore[misc]
    """Reports the progress of a stage: steps, loss, sparsity and speed in tokens."""

    def __init__(self, phase: Phase, tokens: int) -> None:
        self.phase, self.tokens = phase, tokens
        self.logged: dict[str, str] = {}
        self.began, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time and step at which training starts or resumes."""
        self.began, self.first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the progress."""
        seconds = time.monotonic() - self.began
        speed = self.tokens * (state.global_step - self.first) / max(seconds, 1e-9)
        told = [f"{name} {value}" for name, value in self.logged.items()]
        self.phase.tell(", ".join([*told, f"{speed:,.0f} tokens/s"]))
        self.phase(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the newest loss and sparsity."""
        if logs and "lm_loss" in logs:
            told = {"loss": logs["lm_loss"], "sparsity": logs["sparsity"]}
            self.logged = {name: f"{value:.3f}" for name, value in told.items()}


class Beginning(TrainerCallback):  # type: ignore[misc]
    """Runs an action on the model once it is placed for training, before the first step."""

    def __init__(self, action: Callable[[Any], None]) -> None:
        self.action = action

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Run the action with the model in eval mode."""
        with in_mode(model, training=False):
            self.action(model)


class StopRequest(TrainerCallback):  # type: ignore[misc]
    """Turns Ctrl-C and SIGTERM into: finish the step, save a resumable state, stop."""

    def __init__(self) -> None:
        self.received: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop here if asked to; a signal to one process stops all of them after the same step."""
        if any_rank(bool(self.received), args.device):
            self.received = self.received or "a signal to another process"
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; a second one acts at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.received:
                stop_now(number, frame)
            self.received = signal.Signals(number).name

        with handling(note):
            yield
