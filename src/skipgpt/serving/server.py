"""Our own server: one model, one thread, any family."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from skipgpt.errors import MissingExtraError
from skipgpt.model.loading.limits import context_of
from skipgpt.serving.address import Address

CLOSING = 5
"""Seconds after the grace period in which clients are told that the server stops."""


def check_installed() -> None:
    """Raise `MissingExtraError` if a library of the extra `serve` is missing."""
    try:
        for package in ("fastapi", "prometheus_client", "uvicorn"):
            importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "serve", "serving over HTTP") from error


def run_server(
    model: Any,
    tokenizer: Any,
    address: Address,
    *,
    name: str,
    api_key: str | None,
    allowed_origins: Sequence[str],
    grace: int,
    on_ready: Callable[[str], None] | None,
) -> None:
    """Serve requests to a model with routers until SIGINT or SIGTERM; arguments as of `serve`.

    Requests that are not finished after the grace period end with an error that says so.
    """
    import uvicorn

    from skipgpt.serving.app import build_app
    from skipgpt.serving.engine import Engine
    from skipgpt.serving.metrics import Metrics

    metrics = Metrics()
    engine = Engine(model, tokenizer, metrics)
    context = context_of(model) or 2**31
    app = build_app(
        engine, name, metrics, context=context, api_key=api_key, allowed_origins=allowed_origins
    )
    # Errors of a request are logged where it is answered.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=grace + CLOSING)

    class Server(uvicorn.Server):
        """Does not raise the stop signal again after stopping, so that the exit status is 0."""

        def handle_exit(self, number: int, frame: Any) -> None:
            """Let requests finish within the grace period; abort them at a second signal."""
            if self.should_exit:
                self.force_exit = True
                engine.abort_all()
                return
            self.should_exit = True
            late = threading.Timer(grace, engine.abort_all)
            late.daemon = True
            late.start()

    try:
        if on_ready:
            on_ready(address.url)
        Server(config).run(sockets=[address.socket])
    finally:
        engine.abort_all()
        engine.close()  # a thread must not compute while the interpreter exits
