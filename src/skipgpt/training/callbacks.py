"""What watches a training run: metrics file, warnings, progress bar, and requests to stop."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from skipgpt.analysis.failures import failures
from skipgpt.atomic import staged
from skipgpt.processes import any_of
from skipgpt.progress import progress_bar
from skipgpt.training.routing_metrics import nested

logger = logging.getLogger("skipgpt")


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends one JSON line a log step to `metrics.jsonl`."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that a killed run took after its last saved state."""
        if not (state.is_world_process_zero and self.path.exists()):
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill can cut the last line off, which then has no end.
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
    """Warns of each known way to fail, once a stage, and says what to do."""

    def __init__(self, stage: str, target: float, dense_loss: float | None) -> None:
        self.stage, self.target, self.dense_loss = stage, target, dense_loss
        self.lines: list[dict[str, object]] = []
        self.said: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the newest lines."""
        if not logs or "loss" not in logs:
            return
        self.lines.append({"step": state.global_step, **nested(logs)})
        for failure in failures(self.lines, state.max_steps, self.target, self.dense_loss):
            if failure.name not in self.said:
                self.said.add(failure.name)
                logger.warning("stage %s, step %d: %s", self.stage, state.global_step, failure)


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """A bar on standard error, on a terminal only."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where training starts or resumes."""
        self.bar = progress_bar(state.max_steps, f"stage {self.stage}", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the newest loss and sparsity."""
        if logs and "lm_loss" in logs:
            shown = {name: logs[name] for name in ("lm_loss", "sparsity") if name in logs}
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()


class Beginning(TrainerCallback):  # type: ignore[misc]
    """Does something with the model once it lies where it trains, before the first step."""

    def __init__(self, action: Callable[[Any], None]) -> None:
        self.action = action

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Do it."""
        was_training = model.training
        self.action(model.eval())
        model.train(was_training)


class StopRequest(TrainerCallback):  # type: ignore[misc]
    """Turns Ctrl-C and SIGTERM into: finish the step, save a resumable state, stop."""

    def __init__(self) -> None:
        self.received: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop here if asked to; a signal to one process stops all of them after the same step."""
        if any_of(bool(self.received), args.device):
            self.received = self.received or "a signal to another process"
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: FrameType | None) -> None:
            self.received = signal.Signals(number).name
            signal.signal(number, signal.default_int_handler)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
