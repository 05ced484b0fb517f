"""From a checkpoint to a running server."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skipgpt.checkpoint import load
from skipgpt.errors import ConfigError, MissingExtraError
from skipgpt.evaluation.source_rows import context_of

logger = logging.getLogger("skipgpt")

CLOSING = 5
"""Seconds after those of grace, in which clients are told that the server stops."""


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key: str | None = None,
    grace: int = 20,
    on_ready: Callable[[str], None] | None = None,
    **where: Any,
) -> None:
    """Answer OpenAI-style requests until SIGINT or SIGTERM.

    Args:
        folder: a checkpoint.
        host: to listen on; loopback unless said otherwise.
        port: to listen on; 0 takes a free one.
        name: of the model for clients; that of the folder where None.
        api_key: which clients have to send; None asks for none.
        grace: seconds that requests get to finish once the server was asked to stop; those that are
            not over by then end with an error that says so.
        on_ready: called with the address once requests are taken.
        where: `sparsity`, `base`, `device`, `dtype` and `quantize`, as `skipgpt.load` takes them.

    Raises:
        ConfigError: the address is taken, or not this machine's.
        MissingExtraError: without the extra `serve`.
        SkipGPTError: the checkpoint cannot be loaded.

    Example:
        serve("out/nano-25", port=8080, sparsity=0.4)
    """
    try:
        import uvicorn

        from skipgpt.serving.app import build_app
        from skipgpt.serving.engine import Engine
        from skipgpt.serving.metrics import Metrics
    except ImportError as error:
        raise MissingExtraError(str(error.name), "serve", "serving over HTTP") from error

    listening = listen(host, port)
    model, tokenizer = load(folder, merge=True, **where)
    metrics = Metrics()
    engine = Engine(model, tokenizer, metrics)
    app = build_app(
        engine,
        name or Path(folder).resolve().name,
        metrics,
        context=context_of(model) or 2**31,
        api_key=api_key,
    )
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace + CLOSING)

    class Server(uvicorn.Server):
        """Tells the engine when the seconds of grace are over."""

        def handle_exit(self, number: int, frame: Any) -> None:
            if not self.should_exit:
                late = threading.Timer(grace, engine.hurry)
                late.daemon = True
                late.start()
            super().handle_exit(number, frame)

    server = Server(config)
    shown, port = listening.getsockname()[:2]
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"
    with listening:
        listening.listen()  # from here on clients wait instead of being refused
        if on_ready:
            on_ready(address)
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound but not listening yet: a taken port is known before a model is loaded.

    Raises:
        ConfigError: it cannot be bound.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(kind, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(
            f"listening on {host}:{port}",
            got=error.strerror or str(error),
            expected="a free port on an address of this machine",
            todo="name another --port or --host; port 0 takes a free one",
        ) from error
    return bound
