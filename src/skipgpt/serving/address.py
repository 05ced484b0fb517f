"""The listening socket of a server, and the origins that may call it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from skipgpt.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """A listening socket: from now on clients wait, and are not refused.

    Attributes:
        socket: listening.
        host: as requested.
        port: the actual one, where a free one was requested.
    """

    socket: socket.socket
    host: str
    port: int

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients."""
        shown = self.socket.getsockname()[0]
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/v1"


@contextmanager
def bind(host: str, port: int) -> Iterator[Address]:
    """Listen on an address for the block; a taken port fails at once, and 0 takes a free one.

    Raises:
        ConfigError: it cannot be bound.
    """
    with ExitStack() as stack:
        try:
            if host in ("", "*"):
                raise OSError("no address")
            kind, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            bound = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(where)
            bound.listen()  # two sockets may be bound to a port, but only one may listen
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"listening on {host}:{port}",
                got=getattr(error, "strerror", None) or str(error),
                expected="a free port on an address of this machine",
                todo="name another --port or --host; port 0 takes a free one",
            ) from error
        yield Address(bound, host, bound.getsockname()[1])


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@A-Z]+")


def check_origins(origins: Sequence[str]) -> None:
    """Refuse an allowed origin that no browser sends, so that it would allow nothing.

    Raises:
        ConfigError: there is one.
    """
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                "reading the allowed origins",
                got=repr(origin),
                expected="scheme and host in small letters, with a port if it is not the usual "
                "one, and no path, as a browser sends them: https://chat.example; or *",
                todo="give --allow-origin as the address bar begins",
            )
