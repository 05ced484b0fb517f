"""From a checkpoint to a running server, of vLLM where that is installed, else of our own."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from skipgpt.checkpoint import load
from skipgpt.checkpoint_folder import is_checkpoint, read_info
from skipgpt.errors import CheckpointError, ConfigError, MissingExtraError
from skipgpt.export import export_merged
from skipgpt.model.auto import register
from skipgpt.model.base import base_config, load_base
from skipgpt.model.dial import set_sparsity
from skipgpt.model.families import MERGED_PREFIX
from skipgpt.model.int8 import check_loaded_as, quantize_int8
from skipgpt.serving.address import bind
from skipgpt.serving.server import check_installed, run_server
from skipgpt.serving.vllm.families import unsupported

ENGINES = ("auto", "vllm", "transformers")

logger = logging.getLogger("skipgpt")


def serve(
    folder: str | Path,
    *,
    engine: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key: str | None = None,
    grace: int = 20,
    sparsity: float | None = None,
    base: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str | None = None,
    vllm_options: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Answer OpenAI-style requests until SIGINT or SIGTERM.

    Args:
        folder: a checkpoint, or a merged export.
        engine: `vllm`, which takes many requests at once; `transformers`, which takes one after
            the other and runs every family; `auto` is vLLM where it is installed and can.
        host: to listen on; loopback unless said otherwise.
        port: to listen on; 0 takes a free one.
        name: of the model for clients; that of the folder where None.
        api_key: which clients have to send; None asks for none.
        grace: seconds that requests get to finish once the server was asked to stop.
        sparsity: of requests that do not say; the checkpoint's own where None.
        base: where the base model lies, if it has moved.
        device: for `transformers`; vLLM runs where it was built for.
        dtype: of the base's weights.
        quantize: `int8`, for `transformers`.
        vllm_options: more options of `vllm serve`.
        on_ready: called with the URL once requests are taken.

    Raises:
        ConfigError: the address is taken, or the engine cannot do what was asked.
        MissingExtraError: without the extra `serve`, or `vllm`.
        SkipGPTError: the checkpoint cannot be loaded, or the engine did not start.

    Example:
        serve("out/nano-25", port=8080, sparsity=0.4)
    """
    folder = Path(folder)
    name = name or folder.resolve().name
    chosen = _choose(folder, engine, base, quantize, vllm_options)
    common: dict[str, Any] = {"name": name, "api_key": api_key, "grace": grace}
    common["on_ready"] = on_ready
    if chosen == "transformers":
        check_installed()
        with bind(host, port) as address:
            model, tokenizer = _load(folder, sparsity, base, device, dtype, quantize)
            run_server(model, tokenizer, address, **common)
        return
    from skipgpt.serving.vllm.launch import launch

    with tempfile.TemporaryDirectory(prefix="skipgpt-merged-") as scratch:
        if is_checkpoint(folder):
            logger.info(
                "merging into %s for this run; `skipgpt export --merged` does it once", scratch
            )
            export_merged(folder, scratch, base=base, dtype=dtype)
            folder = Path(scratch)
        with bind(host, port) as address:
            launch(folder, address, sparsity=sparsity, dtype=dtype, more=vllm_options, **common)


def _choose(
    folder: Path, engine: str, base: str | None, quantize: str | None, options: Sequence[str]
) -> str:
    """The engine to run.

    Raises:
        CheckpointError: the folder holds nothing that can be served.
        ConfigError: vLLM was asked for and cannot, or has options and was not asked for.
        MissingExtraError: vLLM was asked for and is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError("choosing the engine", got=repr(engine), expected=", ".join(ENGINES))
    why_not = "quantize=" if quantize else unsupported(*_family_and_router(folder, base))
    installed = find_spec("vllm") is not None
    if engine == "vllm":
        if not installed:
            raise MissingExtraError("vllm", "vllm", "serving with vLLM")
        if why_not:
            raise ConfigError(
                f"serving {folder} with vLLM",
                got=why_not,
                expected="what its plug-in runs",
                todo="serve it with engine transformers",
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


def _family_and_router(folder: Path, base: str | None) -> tuple[str, dict[str, Any]]:
    """The model type of the base, and how routers are built."""
    if is_checkpoint(folder):
        info = read_info(folder)
        router = {"kv": info.router.kv, "decides": info.router.decides}
        return base_config(base or info.base).model_type, router
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
        if kind.startswith(MERGED_PREFIX):
            return kind.removeprefix(MERGED_PREFIX), config["router"]
        got = f"a model of type {kind!r}, without routers"
    except (OSError, ValueError, KeyError, TypeError):
        got = "no checkpoint"
    raise CheckpointError(
        f"serving {folder}",
        got=got,
        expected="a folder made by `skipgpt train`, or by `skipgpt export --merged`",
    )


def _load(
    folder: Path, sparsity: float | None, base: str | None, device: str, dtype: str,
    quantize: str | None,
) -> tuple[Any, Any]:  # fmt: skip
    """The model in transformers, LoRA merged, and its tokenizer."""
    if is_checkpoint(folder):
        return load(
            folder, sparsity=sparsity, base=base, merge=True, device=device, dtype=dtype,
            quantize=quantize,
        )  # fmt: skip
    check_loaded_as(quantize)
    register()
    model, tokenizer = load_base(str(folder), device=device, dtype=dtype)
    if sparsity is not None:
        set_sparsity(model, sparsity)
    return (quantize_int8(model) if quantize else model), tokenizer
