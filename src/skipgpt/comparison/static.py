"""Methods that remove the same modules for every token, with and without healing."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

from skipgpt.baselines.registry import STATIC
from skipgpt.baselines.static import constant_routes
from skipgpt.baselines.units import Unit, sites_of
from skipgpt.comparison.job import Job
from skipgpt.comparison.method import DENSE, Method
from skipgpt.comparison.result import Row
from skipgpt.comparison.trained import in_comparison
from skipgpt.config import TrainConfig
from skipgpt.cost import sparsities
from skipgpt.errors import TrainingError
from skipgpt.evaluation.perplexity import Perplexity, perplexity
from skipgpt.model.base import load_base
from skipgpt.model.surgery import routers
from skipgpt.model.trace import deciding
from skipgpt.routing.decision import Forced
from skipgpt.training.run_stage import run_stage


def remove(job: Job, method: Method, sparsity: float, seed: int) -> list[Row]:
    """A static method at exactly this budget.

    Between two numbers of removals the losses are interpolated: that is what removing the larger
    number for a share of the sequences, and the smaller for the others, would give.
    """
    low, high, share = _counts(job, method, sparsity)
    began = time.perf_counter()
    measured = _without(job, method, sorted({low, high}))
    seconds = time.perf_counter() - began
    mixed = measured[0] if low == high else _mixture(measured[0], measured[1], share)
    note = _note(method, low, high)
    return [job.row(method, sparsity, seed, mixed, note=note, seconds=seconds)]


def heal(job: Job, method: Method, config: TrainConfig, folder: Path) -> list[Row]:
    """Stage `lora` around a static removal, or around the whole base model.

    A budget between two numbers of removals is mixed from both of them, each healed.
    """
    sparsity, began = config.target_sparsity, time.perf_counter()
    if method.kind == DENSE:
        mixed, note = _healed(job, method, config, folder, job.routed(), []), ""
    else:
        low, high, share = _counts(job, method, sparsity)
        measured = [
            _healed(job, method, config, folder / str(count), *_removed(job, method, count))
            for count in sorted({low, high})
        ]
        mixed = measured[0] if low == high else _mixture(measured[0], measured[1], share)
        note = _note(method, low, high)
    shutil.rmtree(folder, ignore_errors=True)  # what it would have been resumed from
    seconds = time.perf_counter() - began
    return [job.row(method, sparsity, config.seed, mixed, note=note, seconds=seconds)]


def _healed(
    job: Job,
    method: Method,
    config: TrainConfig,
    folder: Path,
    model: Any,
    removed: list[Unit],
) -> Perplexity:
    """The loss after stage `lora` around what is removed."""
    constant_routes(model, removed)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model = run_stage(model, "lora", config, job.blocks, folder)
    except TrainingError as error:
        raise in_comparison(error) from error
    return _pruned(job, method, model, removed)


def _note(method: Method, low: int, high: int) -> str:
    kind = STATIC[method.kind].units
    return f"{low} {kind} removed" if low == high else f"between {low} and {high} {kind} removed"


def _counts(job: Job, method: Method, sparsity: float) -> tuple[int, int, float]:
    """The whole numbers of removals around a budget, and the share of the larger."""
    units = job.layers if STATIC[method.kind].units == "layers" else 2 * job.layers
    exact = sparsity * units
    low, high = math.floor(exact + 1e-9), math.ceil(exact - 1e-9)
    return low, high, exact - low


def _removed(job: Job, method: Method, count: int) -> tuple[Any, list[Unit]]:
    """A fresh model, changed if the method does that, and what it removes."""
    model = job.routed()
    return model, STATIC[method.kind].order(model, job.searched(), count) if count else []


def _without(job: Job, method: Method, counts: list[int]) -> list[Perplexity]:
    """The losses without so many units, given in rising order."""
    model, removed = _removed(job, method, counts[-1])
    measured = []
    for count in counts:
        if count < len(removed) and STATIC[method.kind].changes_weights:
            changed, fewer = _removed(job, method, count)
        else:
            changed, fewer = model, removed[:count]
        with deciding(changed, Forced.without(sites_of(fewer))):
            measured.append(_pruned(job, method, changed, fewer))
    return measured


def _pruned(job: Job, method: Method, model: Any, removed: list[Unit]) -> Perplexity:
    """Loss, with the costs of a model in which the units are gone, keys and values included.

    The skipping model that is measured computes those for every token.
    """
    measured = perplexity(model, job.held_out(), closeness_to=_dense(job, method, model))
    gone = set(sites_of(removed))
    keep = {site: float(site not in gone) for site in routers(model)}
    context = (job.blocks.held_out.shape[1] + 1) / 2
    shares = sparsities(model, keep, context, gone=gone, routed=False)
    return dataclasses.replace(measured, sparsity=shares)


def _dense(job: Job, method: Method, model: Any) -> Any:
    """The dense base of a pruned model: itself, unless the method changed its weights."""
    if method.kind in STATIC and STATIC[method.kind].changes_weights:
        return load_base(job.base, **job.where)[0].eval()
    return model


def _mixture(low: Perplexity, high: Perplexity, share: float) -> Perplexity:
    """What sequences give of which this share runs at the higher sparsity."""

    def between(a: float, b: float) -> float:
        return a + (b - a) * share

    nll = between(low.nll_per_token, high.nll_per_token)
    closest, close = low.closeness, high.closeness
    return dataclasses.replace(
        low,
        nll_per_token=nll,
        perplexity=math.exp(min(nll, 700.0)),
        sparsity={name: between(low.sparsity[name], high.sparsity[name]) for name in low.sparsity},
        keep_rates={
            kind: tuple(map(between, rates, high.keep_rates[kind]))
            for kind, rates in low.keep_rates.items()
        },
        closeness=closest.mixed(close, share) if closest and close else None,
    )
