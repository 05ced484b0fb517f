"""Choose the engine of a checkpoint: vLLM where installed and able, else transformers."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from skipgpt.checkpoint.folder import base_of, read_info
from skipgpt.config.checks import check_choice
from skipgpt.errors import CheckpointError, ConfigError, MissingExtraError
from skipgpt.model.base import base_config
from skipgpt.model.families.table import MERGED_PREFIX
from skipgpt.model.loading.folder import describe_kind, json_of, kind_of_model
from skipgpt.serving.vllm.families import unsupported

logger = logging.getLogger("skipgpt")

ENGINES = ("auto", "vllm", "transformers")
OURS = frozenset(
    {"--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--dtype",
     "--hf-overrides", "--allowed-origins", "--shutdown-timeout", "--ssl-keyfile", "--ssl-certfile"}
)  # fmt: skip
"""Options of vLLM that `skipgpt serve` sets itself."""


def choose(
    folder: Path, engine: str, base: str | None, quantize: str | None, options: Sequence[str]
) -> str:
    """Return the engine to run.

    Raises:
        CheckpointError: the folder holds nothing that can be served.
        ConfigError: vLLM is requested and cannot run it, or has options and is not used.
        MissingExtraError: vLLM is requested and not installed.
    """
    check_choice("choosing the engine", engine, ENGINES)
    why_not = "quantize=" if quantize else unsupported(*_facts(folder, base)) or _kept_out()
    installed = find_spec("vllm") is not None
    if engine == "vllm":
        if not installed:
            raise MissingExtraError("vllm", "vllm", "serving with vLLM")
        if why_not:
            raise ConfigError(
                f"serving {folder} with vLLM",
                got=why_not,
                expected="what its plug-in runs",
                todo="serve it with --engine transformers (engine=)",
            )
    if taken := [o for o in options if o.split("=")[0].replace("_", "-") in OURS]:
        raise ConfigError(
            "reading options of vLLM",
            got=taken[0],
            expected="what `skipgpt serve` does not set itself",
            todo="use its own option, before the --",
        )
    if engine == "vllm" or (engine == "auto" and installed and not why_not):
        return "vllm"
    if options:
        raise ConfigError(
            "serving with transformers",
            got=f"options of vLLM: {' '.join(options)}",
            expected="none",
            todo="install vLLM, or leave them out",
        )
    if engine == "auto" and installed:
        logger.warning("vLLM is installed and cannot run this (%s): serving without it", why_not)
    return "transformers"


def _kept_out() -> str | None:
    """Name the environment setting that keeps our plug-in out of vLLM, if any."""
    names = os.environ.get("VLLM_PLUGINS")
    if names is not None and "skipgpt" not in names.split(","):
        return f"VLLM_PLUGINS={names!r} in the environment, without skipgpt"
    runner = os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0")
    if runner not in ("", "0"):
        return f"VLLM_USE_V2_MODEL_RUNNER={runner} in the environment, in place of 0"
    return None


def _facts(folder: Path, base: str | None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the model type of the base, the router config, and the rest of the config."""
    kind = kind_of_model(folder)
    if kind == "checkpoint":
        info = read_info(folder)
        config = base_config(base_of(info, folder, base)).to_dict()
        if info.quantization:
            config["quantization_config"] = {"held_in": info.quantization}
        return config["model_type"], dataclasses.asdict(info.router), config
    if kind == "merged":
        config = json_of(folder / "config.json")
        return config["model_type"].removeprefix(MERGED_PREFIX), config.get("router", {}), config
    raise CheckpointError(
        f"serving {folder}",
        got=describe_kind(folder),
        expected="a folder made by `skipgpt train`, or by `skipgpt export --merged`",
    )
