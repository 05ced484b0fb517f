"""Calibrates a model on held-out text, at thresholds that `routing/calibration.py` searches."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import BUDGET_NOUNS, BUDGETS, Budget, DataConfig, TimedForward, check_budget
from skipgpt.cost import profile_for, savings, timed_of
from skipgpt.cost.seconds import timed_on
from skipgpt.data import load_blocks
from skipgpt.evaluation.meter import Meter
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.evaluation.windows import mean_context
from skipgpt.model.loading.limits import check_rows
from skipgpt.model.sparsity import clamp_to_curve, set_sparsity
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import routers
from skipgpt.routing.calibration import CURVE, calibrate_curve, find_threshold
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.system.folder_lock import writing_to
from skipgpt.system.progress import advancing
from skipgpt.system.stopping import stoppable

logger = logging.getLogger("skipgpt")

CURVE_TOKENS = 4096


def calibrate(
    model: nn.Module,
    blocks: Tensor,
    *,
    target: float | None = None,
    budget: Budget | None = None,
    timed: TimedForward | None = None,
    batch_size: int = 8,
) -> CalibrationCurve:
    """Measure a calibration curve in each unit, store them in the model and set the target.

    The thresholds are those that save 0, 5, … 80 % in the requested unit; what they save in the
    others is measured in the same passes. There is a curve in modules and one in FLOPs, and one in
    time if `skipgpt profile` has measured this machine.

    Args:
        model: with routers.
        blocks: [N, T] token ids of text that the routers were not trained on.
        target: a sparsity to hit on all blocks; the model is set to it or, with a warning, to the
            end of the curve if that is lower. The rest of the curve is measured on 4,096 tokens
            of them.
        budget: the unit of `target`, and from now on the default one; that of an earlier
            calibration if None, or else modules.
        timed: the forward whose seconds the unit `time` counts; that of an earlier calibration
            if None, or else the default one.
        batch_size: blocks per forward.

    Returns:
        The curve of that unit.

    Raises:
        ConfigError: no routers, the unit is unknown, it is `time` and there is no profile, or
            blocks are longer than the model's context.
        DataError: a token has no embedding.

    Example:
        skipgpt.calibrate(model, blocks, target=0.25, budget="flops")
    """
    state = routing_state(model)
    check_rows("calibrating", model, None, blocks)
    before = state.curves
    unit = budget or (before.budget if before else "modules")
    timed = timed or timed_of(model)
    profiled = check_budget(unit) == "time" or profile_for(model) is not None
    units = [each for each in BUDGETS if profiled or each != "time"]
    saved = {each: savings(model, each, mean_context(blocks), timed) for each in units}
    few = Meter(model, subsample_rows(blocks, CURVE_TOKENS), saved[unit], batch_size)
    reachable = tuple(each for each in CURVE if unit == "modules" or each < saved[unit].largest)
    with advancing("calibrating the curve", unit="point", announced=True) as advance:
        curves: dict[Budget, CalibrationCurve] = {
            unit: calibrate_curve(few, reachable, on_point=advance)
        }
    thresholds = [at for _, at in curves[unit].points if at > -math.inf]
    for other in saved:
        if other != unit:
            shares = [(saved[other].share(few.keep[at]), at) for at in thresholds]
            curves[other] = CalibrationCurve.rising(shares)
    if target:
        meter = Meter(model, blocks, saved[unit], batch_size)
        with advancing(f"calibrating to {target:g} of {BUDGET_NOUNS[unit]}", announced=True):
            found = find_threshold(meter, target, curves[unit].threshold(target))
        curves[unit] = curves[unit].through(meter.shares[found], found)
        for other in saved:
            share = saved[other].share(meter.keep[found])
            if other != unit and share > 0:
                curves[other] = curves[other].through(share, found)
        few.keep[found] = meter.keep[found]
        thresholds = sorted({*thresholds, found})
    by_budget = {each: curves[each] for each in BUDGETS if each in curves}
    keep_at = tuple(
        (at, *(round(few.keep[at][site], 4) for site in routers(model)))
        for at in thresholds
        if math.isfinite(at)
    )
    here = timed_on(model) if "time" in curves else {}
    state.curves = Curves(by_budget, unit, timed, here, keep_at)
    if target is None:
        return curves[unit]
    near = clamp_to_curve(model, target)
    set_sparsity(model, near)
    if near != target:
        logger.warning(
            "calibration: no threshold skips %.0f %% of %s; from %.1f %% on, a little more "
            "skips nearly everything. The model is set to that. Fit on more text "
            "(fit_stage.tokens), or train the routers longer (stage router)",
            100 * target,
            BUDGET_NOUNS[unit],
            100 * curves[unit].largest,
        )
    return curves[unit]


def calibrate_checkpoint(
    folder: str | Path,
    data: list[str],
    config: DataConfig,
    *,
    target: float,
    budget: Budget | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> CheckpointInfo:
    """Calibrate a checkpoint on disk, measure it, and write both into it.

    Only the held-out documents of the data are used. The budget is the unit of the target; that of
    the checkpoint if None.

    Raises:
        SkipGPTError: on any failure; the checkpoint is then as it was.
    """
    kept = "the checkpoint is as it was; the same command starts again"
    with stoppable(f"calibrating {folder}", lambda: kept), writing_to(Path(folder)):
        before = read_info(folder)
        model, tokenizer = load(folder, device=device, dtype=dtype)
        unit = budget or before.budget
        blocks = load_blocks(data, tokenizer, config, train_tokens=0)
        check_rows("reading the text", model, tokenizer, blocks.train, blocks.held_out)
        text = subsample_rows(blocks.calibration, config.calibration_tokens)
        calibrate(model, text, target=target, budget=unit)
        measured = perplexity(model, subsample_rows(blocks.held_out, config.evaluation_tokens))
        found = describe(model, before.base, fingerprint=before.fingerprint)
        info = dataclasses.replace(
            before,
            curves=found.curves,
            budget=unit,
            timed=found.timed,
            hardware=found.hardware,
            keep_at=found.keep_at,
            target_sparsity=target,
            sparsity=measured.sparsity,
            keep=measured.keep_rates,
        )
        return save(model, folder, info, overwrite=True)


def say_if_uncalibrated(model: nn.Module) -> None:
    """Warn if no threshold was ever set: the sparsity is then whatever the routers give."""
    if routing_state(model).curves is None:
        logger.warning("never calibrated: a module runs where its router's margin is above 0")


def subsample_rows(blocks: Tensor, tokens: int) -> Tensor:
    """Return about this many tokens of blocks [N, T], as evenly spaced rows."""
    wanted = max(1, min(len(blocks), tokens // blocks.shape[1]))
    return blocks[torch.linspace(0, len(blocks) - 1, wanted).round().long()]
