"""Methods with learned routes: made by `skipgpt.train`, measured on the same held-out text."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from skipgpt.baselines.top_k import layer_thresholds, top_k_rule
from skipgpt.checkpoint.loading import load_placed
from skipgpt.comparison.method import Method
from skipgpt.comparison.result import Row, read_elsewhere
from skipgpt.comparison.setup import KEPT, ComparisonSetup
from skipgpt.config import Stage, TrainConfig
from skipgpt.cost import sparsities
from skipgpt.errors import ConfigError, DivergedError, TrainingError
from skipgpt.evaluation.perplexity import Perplexity, perplexity, total_loss
from skipgpt.model.sparsity import set_sparsity
from skipgpt.model.state import count_routing, execution, routing_state, use_rule
from skipgpt.routing.decision import MODULES, DecisionRule, GumbelSample, RandomRoutes, Site
from skipgpt.training.run import TrainResult, train
from skipgpt.training.run_record import RUN
from skipgpt.training.run_stage import run_stage
from skipgpt.training.run_start import start_routers

logger = logging.getLogger("skipgpt")


def train_routes(
    setup: ComparisonSetup,
    method: Method,
    config: TrainConfig,
    folder: Path,
    routed: Row | None = None,
) -> list[Row]:
    """Train routers, or heal those of a row, whose time and tokens then count, with stage `lora`.

    Decisions are deterministic in the measurement and, for recipe `paper`, also sampled.
    """
    base, seconds = setup.base, 0.0
    before: tuple[Stage, ...] = ()
    if routed is not None:
        base, seconds, before = str(routed.checkpoint), routed.seconds, config.stages
        config = dataclasses.replace(config, stages=("lora",))
    began = time.perf_counter()
    result = _run_or_resume(setup, base, config, folder)
    row = setup.row(
        method,
        config.target_sparsity,
        config.seed,
        result.held_out[config.stages[-1]],
        seconds=seconds + time.perf_counter() - began - result.seconds_measuring,
        checkpoint=str(folder),
        tokens_trained=setup.tokens_trained(config, *before, *config.stages),
    )
    return _also_sampled(setup, row) if config.recipe == "paper" else [row]


def random_routes(setup: ComparisonSetup, method: Method, routed: Row) -> list[Row]:
    """Measure random routing: each site skips random tokens at the rate its router learned."""
    model, _ = load_placed(str(routed.checkpoint), setup.placement)
    with count_routing(model) as counts:
        total_loss(model, setup.calibration())
    rates = {site: 1 - kept for site, kept in counts.keep_ratios().items()}
    measured = _measure(setup, routed, RandomRoutes(rates))
    note = "rates for each module from `router`, tokens at random"
    row = setup.row(method, routed.target, routed.seed, measured, note=note)
    return [_with_training_cost(row, routed)]


def measure_at_sparsities(
    setup: ComparisonSetup, method: Method, trained: Row, sparsities: tuple[float, ...]
) -> list[Row]:
    """Measure one checkpoint at other budgets than its own."""
    model, _ = load_placed(str(trained.checkpoint), setup.placement)
    rows = []
    curves = routing_state(model).curves
    curve = None if curves is None else curves.curve()
    for sparsity in sparsities:
        if curve is not None and not curve.reaches(sparsity):
            logger.info("%s reaches %.2f, not %g", method, curve.largest, sparsity)
            continue
        set_sparsity(model, sparsity)
        measured = perplexity(model, setup.held_out(), closeness_to=model)
        row = setup.row(method, sparsity, trained.seed, measured)
        name = read_elsewhere(str(method), trained.target)
        row = dataclasses.replace(row, method=name, checkpoint=trained.checkpoint)
        rows.append(_with_training_cost(row, trained))
    return rows


def _with_training_cost(row: Row, trained: Row) -> Row:
    """Give a row the time and training tokens of the row whose routers it shares."""
    return dataclasses.replace(row, seconds=trained.seconds, tokens_trained=trained.tokens_trained)


def train_top_k(
    setup: ComparisonSetup, method: Method, config: TrainConfig, folder: Path
) -> list[Row]:
    """Train Mixture-of-Depths on a frozen base; measure it as published and with thresholds."""
    model = setup.routed(config.router, config.seed)
    saved = setup.savings(model)
    rule = top_k_rule(model, config.target_sparsity, saved)
    began = time.perf_counter()
    start_routers(model, config, setup.blocks.train)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model = run_stage(model, "router", config, setup.blocks, folder, rule=lambda _: rule)
    except TrainingError as error:
        raise in_comparison(error) from error
    seconds = time.perf_counter() - began
    shutil.rmtree(folder, ignore_errors=True)  # the resume states
    ranked = "selects among all tokens of a row, later ones included"
    causal = "selects by one threshold per layer, set on calibration text"
    tokens, rows = setup.tokens_trained(config, "router"), []
    for each, note, suffix in ((rule, ranked, ""), (None, causal, " (causal)")):
        began = time.perf_counter()
        chosen = each or layer_thresholds(model, setup.calibration(), rule)
        seconds += time.perf_counter() - began
        # Scores scale the outputs, which only `gated` does: `sparse` either keeps or skips.
        with execution(model, "gated"), use_rule(model, chosen):
            measured = perplexity(model, setup.held_out(), closeness_to=model)
        rates = measured.keep_rates
        keep = {Site(n, kind): rate for kind in MODULES for n, rate in enumerate(rates[kind])}
        shares = sparsities(model, keep, setup.context, setup.timed)
        measured = dataclasses.replace(measured, sparsity=shares)
        facts: dict[str, Any] = {"note": note, "seconds": seconds, "tokens_trained": tokens}
        row = setup.row(method, config.target_sparsity, config.seed, measured, **facts)
        rows.append(dataclasses.replace(row, method=f"{method}{suffix}"))
    return rows


def _measure(setup: ComparisonSetup, trained: Row, rule: DecisionRule) -> Perplexity:
    model, _ = load_placed(str(trained.checkpoint), setup.placement)
    torch.manual_seed(trained.seed)
    with use_rule(model, rule):
        return perplexity(model, setup.held_out(), closeness_to=model)


def _also_sampled(setup: ComparisonSetup, row: Row) -> list[Row]:
    measured = _measure(setup, row, GumbelSample(1.0))
    sampled = dataclasses.replace(row, **setup.measured_fields(measured))
    note = "routes drawn anew in evaluation, as the authors' code does"
    return [row, dataclasses.replace(sampled, note=note, method=f"{row.method} (sampled)")]


def _run_or_resume(
    setup: ComparisonSetup, base: str, config: TrainConfig, folder: Path
) -> TrainResult:
    """Train into a folder, or resume where an interrupted comparison stopped."""
    where: Any = setup.device_and_dtype
    try:
        if (folder / RUN).exists():
            try:
                return train(base, setup.data, folder, config, resume=True, **where)
            except ConfigError:  # the same text under other names, which resuming rejects
                logger.info("%s cannot be resumed and starts over", folder.name)
        return train(base, setup.data, folder, config, overwrite=True, **where)
    except TrainingError as error:
        raise in_comparison(error) from error


def in_comparison(error: TrainingError) -> TrainingError:
    """Return the error with advice that fits a comparison, which resumes by itself."""
    if isinstance(error, DivergedError):
        return error.advising("what was finished is kept; give a lower learning rate (--lr)")
    return error.advising(KEPT)
