"""Cache of fits, keyed by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skipgpt.checkpoint.tensors import load_routers, trained_tensors
from skipgpt.config import TrainConfig
from skipgpt.config.settings import from_dict, to_dict
from skipgpt.errors import CheckpointError
from skipgpt.fitting.fit import FittedSite
from skipgpt.model.loading.fingerprint import weights_digest
from skipgpt.model.state import routing_state
from skipgpt.system.atomic import staged, to_json
from skipgpt.system.device_profile import ANOTHER_CACHE, cache_folder
from skipgpt.system.digest import json_digest

logger = logging.getLogger("skipgpt")

VERSION = 2
"""Increased when the code changes what a fit gives."""
TENSORS, FACTS = "fit.safetensors", "fit.json"


def key_of(model: nn.Module, text: Tensor, config: TrainConfig) -> str:
    """Return 16 hex digits of all that a fit to a text [N, T] depends on, except for the budget."""
    base: Any = model.config
    described = {name: value for name, value in base.to_dict().items() if name[0] != "_"}
    made_of = {
        "version": VERSION,
        "base": weights_digest(model, routers=False),
        "config": described,
        "dtype": str(model.dtype),
        "router": to_dict(routing_state(model).config),
        "stage": {k: v for k, v in to_dict(config.fit_stage).items() if k != "rounds"},
        "seed": config.seed,
        "text": hashlib.sha256(text.cpu().numpy().tobytes()).hexdigest(),
    }
    return json_digest(made_of)


def read_fit(model: nn.Module, key: str) -> list[FittedSite] | None:
    """Load a stored fit into a model, in place; None if there is none to read."""
    try:
        folder = _folder(key)
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        found = [from_dict(FittedSite, each, f"reading {folder}") for each in facts["sites"]]
        load_routers(model, load_file(folder / TENSORS), folder)
    except (FileNotFoundError, NotADirectoryError, CheckpointError):  # no home folder, no cache
        return None
    except PermissionError as error:
        logger.warning("a stored fit may not be read and is made anew: %s", error)
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("a stored fit is damaged and made anew: %s", error)
        return None
    return found


def write_fit(model: nn.Module, key: str, found: list[FittedSite]) -> None:
    """Store a model's fit, with margins that are still logarithms of costs; warn on failure."""
    try:
        with staged(_folder(key), last=FACTS) as stage:
            save_file(trained_tensors(model)[0], stage / TENSORS)
            (stage / FACTS).write_text(
                to_json({"sites": [to_dict(each) for each in found]}), encoding="utf-8"
            )
    except CheckpointError as error:
        advised = error.advising(ANOTHER_CACHE)
        logger.warning("the fit is not kept for another budget: %s", advised)


def _folder(key: str) -> Path:
    return cache_folder() / "fits" / key
