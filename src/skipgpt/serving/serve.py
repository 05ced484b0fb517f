"""Serve a checkpoint over HTTP: with vLLM where possible, else with our own server."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from skipgpt.checkpoint.folder import is_checkpoint, local_folder
from skipgpt.checkpoint.loading import load
from skipgpt.config import Budget, check_pair
from skipgpt.errors import ConfigError
from skipgpt.export import export_merged
from skipgpt.model.auto import curves_of
from skipgpt.model.loading.folder import json_of
from skipgpt.model.loading.generation_settings import warn_left_out
from skipgpt.model.sparsity import threshold_of
from skipgpt.serving.address import bind, check_origins
from skipgpt.serving.engine_selection import choose
from skipgpt.serving.server import check_installed, run_server
from skipgpt.system.stopping import handling

logger = logging.getLogger("skipgpt")


def serve(
    folder: str | Path,
    *,
    engine: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key: str | None = None,
    allowed_origins: Sequence[str] = (),
    grace: int = 20,
    sparsity: float | None = None,
    budget: Budget | None = None,
    base: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str | None = None,
    vllm_options: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an OpenAI-compatible API until SIGINT or SIGTERM.

    Args:
        folder: a checkpoint, a hub id of one, or a merged export.
        engine: `vllm`, which batches requests; `transformers`, which runs one request at a time
            and every family; `auto` is vLLM where it is installed and can run the checkpoint.
        host: host to listen on.
        port: port to listen on; 0 takes a free one.
        name: model name for clients; that of the folder where None.
        api_key: key that clients must send; None requires none.
        allowed_origins: origins allowed by CORS, as in `https://chat.example`; `*` is any.
        grace: seconds that requests get to finish after a stop signal.
        sparsity: default sparsity of requests; the checkpoint's own where None.
        budget: what `sparsity` counts; as the checkpoint was trained where None.
        base: location of the base model, if it has moved.
        device: for `transformers`; vLLM uses the platform that it was built for.
        dtype: dtype of the base's weights.
        quantize: `int8`, for `transformers`.
        vllm_options: more options of `vllm serve`.
        on_ready: called with the URL once requests are accepted.

    Raises:
        ConfigError: the address is taken, an allowed origin is none that browsers send, or the
            engine does not support the request.
        MissingExtraError: the extra `serve`, or `vllm`, is not installed.
        SkipGPTError: the checkpoint cannot be loaded, or the engine did not start.

    Example:
        serve("out/nano-25", port=8080, sparsity=0.4, budget="flops")
    """
    check_pair(sparsity, budget)
    check_origins(allowed_origins)
    name = name or Path(folder).resolve().name
    folder = local_folder(folder)
    _check_exposure(host, api_key)
    chosen = choose(folder, engine, base, quantize, vllm_options)
    common: dict[str, Any] = {"name": name, "api_key": api_key, "grace": grace}
    common |= {"on_ready": on_ready, "allowed_origins": tuple(allowed_origins)}
    if chosen == "transformers":
        check_installed()
        with bind(host, port) as address:
            model, tokenizer = load(
                folder, sparsity=sparsity, budget=budget, base=base, merge=True, device=device,
                dtype=dtype, quantize=quantize,
            )  # fmt: skip
            warn_left_out(model.generation_config, sampling=True)
            run_server(model, tokenizer, address, **common)
        return
    from transformers import GenerationConfig

    from skipgpt.serving.vllm.launch import launch

    with ExitStack() as stack:
        common |= {"shown": str(folder), "dtype": dtype, "more": vllm_options}
        address = stack.enter_context(bind(host, port))
        if is_checkpoint(folder):
            # By an exception, so that the temporary folder is removed.
            leave = handling(lambda number, _: sys.exit(128 + number), signal.SIGTERM)
            stack.enter_context(leave)
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="skipgpt-merged-"))
            logger.info("merging into %s; `skipgpt export --merged` does it once for all", made)
            export_merged(folder, made, sparsity=sparsity, budget=budget, base=base, dtype=dtype)
            folder, sparsity = Path(made), None
        elif sparsity is not None:  # one beyond the curve is refused before an engine starts
            curves = curves_of(SimpleNamespace(**json_of(folder / "config.json")))
            threshold_of(curves, sparsity, budget)
        if (folder / "generation_config.json").is_file():
            warn_left_out(GenerationConfig.from_pretrained(folder), sampling=True)
        launch(folder, address, sparsity=sparsity, budget=budget, **common)


def _check_exposure(host: str, api_key: str | None) -> None:
    """Refuse an empty key, and warn where others can reach the server without one."""
    if api_key == "":
        raise ConfigError(
            "reading the API key",
            got="an empty one",
            expected="a key",
            todo="give --api-key (api_key=, SKIPGPT_API_KEY) a value, or leave it out",
        )
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("whoever reaches %s can use this server: no API key is set", host)
