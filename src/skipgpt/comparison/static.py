"""Methods that remove the same modules for every token, with and without healing."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from skipgpt.baselines.registry import STATIC
from skipgpt.comparison.method import DENSE, Method
from skipgpt.comparison.removal import Removal, apply_removal, find_removal
from skipgpt.comparison.result import Row
from skipgpt.comparison.setup import ComparisonSetup
from skipgpt.comparison.trained import in_comparison
from skipgpt.config import TrainConfig
from skipgpt.cost import sparsities
from skipgpt.errors import TrainingError
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.perplexity import Perplexity, perplexity
from skipgpt.model.base import load_base
from skipgpt.model.surgery import routers
from skipgpt.removal.units import Unit, sites_of
from skipgpt.training.run_stage import run_stage


def remove(
    setup: ComparisonSetup,
    method: Method,
    config: TrainConfig,
    out: Path,
    folder: Path | None = None,
) -> list[Row]:
    """Measure a static method, or the whole base model, at exactly this budget.

    Between two removal counts the loss is interpolated, as if the larger count were removed for a
    share of the sequences, and the smaller for the others. With a folder, each count is healed
    there first with stage `lora`, for as many steps as any other method; stand-ins train as well.
    """
    removal = find_removal(setup, method, config, out)
    measured, seconds = [], removal.seconds
    for count in sorted({removal.low, removal.high}):
        model, units, more = apply_removal(setup, method, config, removal, count)
        seconds += more
        if folder is not None:
            began = time.perf_counter()
            own = folder / str(count)
            own.mkdir(parents=True, exist_ok=True)
            try:
                model = run_stage(model, "lora", config, setup.blocks, own)
            except TrainingError as error:
                raise in_comparison(error) from error
            seconds += time.perf_counter() - began
        measured.append(_pruned(setup, method, model, units))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)  # the resume states
    low, high = measured[0], measured[-1]
    row = setup.row(
        method,
        config.target_sparsity,
        config.seed,
        low if low is high else _mixture(low, high, removal.share),
        note=_note(setup, method, config, removal),
        seconds=seconds,
        tokens_trained=setup.tokens_trained(config, "lora") if method.lora else 0,
    )
    return [row]


def _note(setup: ComparisonSetup, method: Method, config: TrainConfig, removal: Removal) -> str:
    if method.kind == DENSE:
        return ""
    kind, low, high = STATIC[method.kind].units, removal.low, removal.high
    note = f"{low} {kind} removed" if low == high else f"between {low} and {high} {kind} removed"
    if not method.stand_in:
        return note
    fitted = subsample_rows(setup.blocks.train, config.fit_stage.stand_in_tokens).numel()
    rank = config.router.resolved(setup.width).stand_in
    return f"{note}, stand-ins of rank {rank} fitted on {fitted:,} tokens"


def _pruned(setup: ComparisonSetup, method: Method, model: Any, removed: list[Unit]) -> Perplexity:
    """Measure loss, with the savings of a model without these units, keys and values included.

    The measured model only skips them, and computes keys and values for every token.
    """
    measured = perplexity(model, setup.held_out(), closeness_to=_dense(setup, method, model))
    gone = set(sites_of(removed))
    keep = {site: float(site not in gone) for site in routers(model)}
    shares = sparsities(model, keep, setup.context, setup.timed, removed=True)
    return dataclasses.replace(measured, sparsity=shares)


def _dense(setup: ComparisonSetup, method: Method, model: Any) -> Any:
    """Return the dense base of a pruned model: itself, unless the method changed its weights."""
    if method.kind in STATIC and STATIC[method.kind].changes_weights:
        return load_base(setup.base, **setup.device_and_dtype)[0].eval()
    return model


def _mixture(low: Perplexity, high: Perplexity, share: float) -> Perplexity:
    """Mix two results, with this share of the sequences at the higher sparsity."""

    def between(a: float, b: float) -> float:
        return a + (b - a) * share

    nll = between(low.nll_per_token, high.nll_per_token)
    closest, close = low.closeness, high.closeness
    return Perplexity.of(
        nll,
        low.tokens,
        {name: between(low.sparsity[name], high.sparsity[name]) for name in low.sparsity},
        {
            kind: tuple(map(between, rates, high.keep_rates[kind]))
            for kind, rates in low.keep_rates.items()
        },
        closest.mixed(close, share) if closest and close else None,
    )
