"""Rounds of stage `fit`: correct routers and refit stand-ins under the target's routes."""

from __future__ import annotations

import logging
import math

from torch import Tensor, nn

from skipgpt.config import TrainConfig
from skipgpt.cost import Savings
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.meter import Meter
from skipgpt.fitting.corrections import (
    Correction,
    apply_corrections,
    corrections,
    measure_values,
    price_of,
)
from skipgpt.fitting.fit import Progress, layer_groups
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.surgery import stand_ins
from skipgpt.routing.calibration import find_threshold
from skipgpt.routing.decision import Site

logger = logging.getLogger("skipgpt")

SEARCH_TOKENS = 4096
"""Tokens that the target's threshold is searched on before stand-ins are fitted again, at most."""


def fit_to_routes(
    model: nn.Module, text: Tensor, config: TrainConfig, savings: Savings, progress: Progress
) -> None:
    """Fit stand-ins and routers with priced margins to the routes of the target, in place.

    Stand-ins are fitted again to the tokens that skip: those are not average ones, and earlier
    modules were skipped in the streams they read. Then, in rounds, routers are corrected by what
    decisions cost under the routes, and stand-ins follow. `text` [N, T] are token ids of training
    text.

    Raises:
        TrainingError: a gradient is NaN or infinite.
    """
    # On no more than the kept threshold is calibrated on later.
    few_rows = subsample_rows(text, min(SEARCH_TOKENS, config.data.calibration_tokens))

    def target_threshold() -> float:
        with progress("searching the threshold of the target"):
            few = Meter(model, few_rows, savings)
            start = few(-math.inf).guess(config.target_sparsity)
            return find_threshold(few, config.target_sparsity, start, rounds=2)

    for number in range(config.fit_stage.rounds + 1):
        if number:
            threshold = target_threshold()
            _correct(model, text, config, savings, threshold, number, progress)
        if stand_ins(model):
            threshold = target_threshold()
            sample = subsample_rows(text, config.fit_stage.stand_in_tokens)
            with progress("fitting stand-ins to what skips") as on_step:
                fit_stand_ins(model, sample, threshold=threshold, on_step=on_step)


def _correct(
    model: nn.Module,
    text: Tensor,
    config: TrainConfig,
    savings: Savings,
    threshold: float,
    number: int,
    progress: Progress,
) -> None:
    """Correct routers once by what decisions cost under the routes of a threshold."""
    stage, price = config.fit_stage, None
    # Each round measures other rows, if the text has more.
    sample = subsample_rows(text.roll(-number, 0), stage.tokens)
    made: dict[Site, Correction] = {}
    for layers in layer_groups(model, sample.numel()):
        with progress(f"measuring costs under the routes, round {number}") as on_step:
            found = measure_values(
                model,
                sample,
                threshold,
                layers=layers,
                draws=stage.draws,
                batch_size=stage.batch_size,
                seed=config.seed + number,
                on_step=on_step,
            )
        price = price or price_of(model, found, savings, threshold)
        if price is None:
            logger.info("stage fit: round %d corrects nothing: no price near the threshold", number)
            return
        with progress("correcting routers") as on_step:
            made |= corrections(model, found, savings, threshold, price, stage.by_token, on_step)
        del found  # with their inputs, before those of the next group are stored
    apply_corrections(model, made)
