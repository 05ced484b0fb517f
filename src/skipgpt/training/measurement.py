"""Calibration and measurement around a run's stages, in forwards without gradient.

If several processes train, each of them runs all of these passes in lockstep, as a sharded model
requires. The numbers of the first process are used wherever those of two could differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from skipgpt.config import Stage, TrainConfig
from skipgpt.data import Blocks
from skipgpt.errors import UnsupportedModelError
from skipgpt.evaluation.calibrate import calibrate, subsample_rows
from skipgpt.evaluation.perplexity import Perplexity, perplexity
from skipgpt.fitting.fit import centre_margins
from skipgpt.model.lora import without_lora
from skipgpt.model.state import execution, routing_state
from skipgpt.model.surgery import routers, stand_ins
from skipgpt.system.distributed import broadcast, from_first
from skipgpt.system.progress import advancing
from skipgpt.training.run_record import note_measured
from skipgpt.training.run_start import start_routers


@dataclass
class Passes:
    """The calibration and measurement passes of one run.

    Attributes:
        starts: whether routers are new and no stage initialises them.
        dense: the loss of the dense model on held-out text, once measured.
        seconds_measuring: seconds spent on losses that are only reported.
    """

    config: TrainConfig
    blocks: Blocks
    out: Path
    starts: bool = False
    dense: Perplexity | None = None
    seconds_measuring: float = 0.0

    def before_stages(self, model: Any) -> None:
        """Measure the dense model, whose loss has to be finite, and initialise new routers."""
        with without_lora(model), execution(model, "dense"):
            self.dense = self._measured(model, closeness=False)
        if not math.isfinite(self.dense.nll_per_token):
            name = next(_not_finite(model), None)
            raise UnsupportedModelError(
                "measuring the dense model on held-out text",
                got=f"a loss of {self.dense.nll_per_token}"
                + (f"; {name} has values that are NaN or infinite" if name else ""),
                expected="a finite number",
                todo="get the weights again" if name else "use --dtype float32 (dtype=)",
            )
        note_measured(self.out, "dense", self.dense)
        if self.starts:
            start_routers(model, self.config, self.blocks.train)
            for each in [*routers(model).values(), *stand_ins(model).values()]:
                broadcast(each.parameters())
        # A checkpoint without a curve in the run's unit is calibrated before it is healed.
        curves, config = routing_state(model).curves, self.config
        if curves and config.stages == ("lora",) and config.budget not in curves.by_budget:
            self._calibrate(model)

    def _calibrate(self, model: Any, centred: bool = False) -> None:
        config, state = self.config, routing_state(model)
        target, unit = config.target_sparsity, config.budget
        text = subsample_rows(self.blocks.calibration, config.data.calibration_tokens)
        calibrate(model, text, target=target, budget=unit, timed=config.budget_time)
        if centred:
            centre_margins(model)
        state.curves, state.rule = from_first((state.curves, state.rule))

    def after_stage(self, model: Any, stage: Stage) -> Perplexity:
        """Calibrate, and measure on held-out text."""
        self._calibrate(model, centred=stage == "fit")
        return from_first(self._measured(model))

    def _measured(self, model: Any, closeness: bool = True) -> Perplexity:
        began = time.perf_counter()
        what = "the model" if closeness else "the dense model"
        with advancing(f"measuring {what} on held-out text", announced=True):
            text = subsample_rows(self.blocks.held_out, self.config.data.evaluation_tokens)
            found = perplexity(model, text, closeness_to=model if closeness else None)
        self.seconds_measuring += time.perf_counter() - began
        return found


def _not_finite(model: nn.Module) -> Iterator[str]:
    """Yield the names of a model's weights, of those at hand, that hold NaN or infinity."""
    for name, each in model.named_parameters():
        if not each.is_meta and each.element_size() > 1 and not each.isfinite().all():
            yield name
