"""Stage `fit` of a run: fits routers and stand-ins without training, or takes a cached fit."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from skipgpt.config import TrainConfig
from skipgpt.errors import ConfigError
from skipgpt.fitting.cache import key_of, read_fit, write_fit
from skipgpt.fitting.fit import fit_model, price_margins, summary
from skipgpt.fitting.gated_passes import WITHOUT_FIT, refuse_sequences
from skipgpt.fitting.rounds import fit_to_routes
from skipgpt.system.distributed import launched
from skipgpt.system.progress import Phase, advancing
from skipgpt.training.run_record import note
from skipgpt.training.run_start import savings_of

logger = logging.getLogger("skipgpt")


def check_alone(config: TrainConfig, processes: int) -> None:
    """Raise ConfigError if several processes are to make a fit."""
    if "fit" in config.stages and processes > 1:
        raise ConfigError(
            "planning stage fit",
            got=f"{processes} processes",
            expected="one: a fit takes minutes, and its sums are not shared between processes",
            todo="fit in one process (--stages fit), then train its checkpoint in several",
        )


def check_fit(config: TrainConfig, is_new: bool) -> None:
    """Raise ConfigError if a fit cannot be made; `is_new` tells that a base has no routers yet."""
    if "fit" not in config.stages:
        return
    check_alone(config, launched())
    if config.router.kv == "skip":
        raise ConfigError(
            "planning stage fit",
            got='router.kv = "skip"',
            expected='"dense": a gradient does not see what later tokens lose with a token\'s keys',
            todo=WITHOUT_FIT,
        )
    refuse_sequences(config.router, "planning stage fit")
    if not is_new or config.stages[0] != "fit":
        raise ConfigError(
            "planning stage fit",
            got="routers that were trained before",
            expected="a base model, and fit as the first stage",
            todo="give the base model as BASE, or leave fit out of --stages",
        )


def run_fit(model: Any, config: TrainConfig, text: Tensor, out: Path) -> None:
    """Fit a model's new routers and stand-ins, in place, and note in run.json what was found.

    The training text has token ids [N, T]. On any failure nothing is written.
    """
    began = time.perf_counter()
    model.eval().requires_grad_(False)
    key = key_of(model, text, config)
    found = read_fit(model, key)
    if is_known := found is not None:
        logger.info("stage fit: costs of the dense model are taken from the cache")
    else:
        found = fit_model(model, text, config, _phase)
        write_fit(model, key, found)
    saved = savings_of(model, config)
    price_margins(model, saved)
    fit_to_routes(model, text, config, saved, _phase)
    seconds = round(time.perf_counter() - began, 1)
    told = summary(found)
    note(out, {"fit": {**told, "seconds": seconds, "cached": is_known, "key": key}})
    if not is_known:
        explained = told["explained"]
        logger.info(
            "stage fit: %.0f s; routers explain %.2f nats (attention) and %.2f nats (MLP) of "
            "held-out deviance per token beyond each module's mean",
            seconds,
            explained["attn"],
            explained["mlp"],
        )


def _phase(label: str) -> AbstractContextManager[Phase]:
    return advancing(f"stage fit: {label}", announced=True)
