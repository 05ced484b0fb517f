"""Setting a model's thresholds on held-out text."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.checkpoint import describe, load, save
from skipgpt.checkpoint_folder import read_info
from skipgpt.checkpoint_info import CheckpointInfo
from skipgpt.config import DataConfig
from skipgpt.data import load_blocks
from skipgpt.evaluation.perplexity import perplexity, total_loss
from skipgpt.model.dial import set_sparsity, within_reach
from skipgpt.model.trace import deciding, execution, record_routing, routing_state
from skipgpt.routing.calibration import CURVE, CalibrationCurve, calibrate_curve, skipped_share
from skipgpt.routing.calibration import calibrate as find_threshold
from skipgpt.routing.decision import Threshold

logger = logging.getLogger("skipgpt")

CURVE_TOKENS = 8192


def calibrate(
    model: nn.Module, blocks: Tensor, *, target: float | None = None, batch_size: int = 8
) -> CalibrationCurve:
    """Measure the whole dial, store it in the model and set the target.

    Args:
        model: with routers.
        blocks: [N, T] token ids of text that the routers were not trained on.
        target: a sparsity to hit on all blocks; the model is set to it, or to the end of the
            curve where that comes first, with a warning. The rest of the curve,
            0, 5, … 80 %, is measured on 8,192 tokens of them.
        batch_size: blocks a forward.

    Returns:
        The curve.

    Example:
        skipgpt.calibrate(model, blocks, target=0.25)
    """
    few = cut(blocks, CURVE_TOKENS)
    curve = calibrate_curve(lambda at: run_at_threshold(model, few, at, batch_size)[0], CURVE)
    if target:

        def margins_at(threshold: float) -> Tensor:
            return run_at_threshold(model, blocks, threshold, batch_size)[0]

        found = find_threshold(margins_at, target, curve.threshold(target))
        curve = curve.through(skipped_share(margins_at(found), found), found)
    routing_state(model).curve = curve
    if target is None:
        return curve
    near = within_reach(model, target)
    set_sparsity(model, near)
    if near != target:
        logger.warning(
            "calibration: no threshold skips %.0f %% of modules; from %.1f %% on, a little more "
            "skips nearly everything. The model is set to that. Train the routers longer, or see "
            "docs/training.md on runs that fail",
            100 * target,
            100 * curve.largest,
        )
    return curve


def run_at_threshold(
    model: nn.Module, blocks: Tensor, threshold: float, batch_size: int = 8
) -> tuple[Tensor, float]:
    """The margins of every decision, flat, and the summed loss of blocks [N, T] at a threshold."""
    with (
        deciding(model, Threshold(threshold)),
        execution(model, "sparse"),
        record_routing(model) as trace,
    ):
        loss, _ = total_loss(model, blocks, batch_size)
    return trace.margins(), loss


def calibrate_checkpoint(
    folder: str | Path, data: list[str], config: DataConfig, *, target: float, **where: Any
) -> CheckpointInfo:
    """Calibrate a checkpoint that lies on disk, measure it, and write both into it.

    Args:
        folder: a checkpoint.
        data: sources of text; only the held-out documents are used.
        config: how to cut and split them.
        target: sparsity that the checkpoint is set to.
        where: `device` and `dtype`.

    Raises:
        SkipGPTError: with whatever went wrong; the checkpoint is then as it was.
    """
    model, tokenizer = load(folder, **where)
    blocks = load_blocks(data, tokenizer, config)
    calibrate(model, cut(blocks.calibration, config.calibration_tokens), target=target)
    measured = perplexity(model, cut(blocks.held_out, config.evaluation_tokens))
    before = read_info(folder)
    info = dataclasses.replace(
        before,
        curve=describe(model, before.base).curve,
        target_sparsity=target,
        sparsity=measured.sparsity,
        keep=measured.keep_rates,
    )
    return save(model, folder, info, overwrite=True)


def say_if_uncalibrated(model: nn.Module) -> None:
    """Warn where no threshold was ever set, so that sparsity is what the routers make of it."""
    if routing_state(model).curve is None:
        logger.warning("never calibrated: a module runs where its router's margin is above 0")


def cut(blocks: Tensor, tokens: int) -> Tensor:
    """About this many tokens of blocks [N, T], evenly spread over all of them."""
    wanted = max(1, min(len(blocks), tokens // blocks.shape[1]))
    return blocks[torch.linspace(0, len(blocks) - 1, wanted).round().long()]
