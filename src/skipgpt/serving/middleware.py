"""ASGI middleware: API key, body limit, response counters."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from skipgpt.serving.metrics import Metrics
from skipgpt.serving.replies import error_body

LONGEST = 4 * 2**20
"""Maximum bytes of a request."""
SILENCE = 1.0
"""Seconds without a byte after which a client is taken to wait for an answer."""
TOO_LONG = f"a request has at most {LONGEST:,} bytes"


class ServerMiddleware:
    """ASGI middleware that checks the key under `/v1/`, limits bodies and counts replies.

    Messages pass unchanged, so that the application sees a client disconnect. `api_key` is the
    bearer token that requests need; None requires none.
    """

    def __init__(self, app: Any, metrics: Metrics, api_key: str | None) -> None:
        self._app, self._metrics, self._api_key = app, metrics, api_key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse the request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_reply(scope, message["status"])
            await send(message)

        read = 0

        async def measured() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LONGEST:  # the client sent no content length
                raise HTTPException(413, TOO_LONG)
            return message

        answerer = self._answerer(scope)
        await answerer(scope, receive if answerer is _refuse_long else measured, counted)

    def _answerer(self, scope: Any) -> Any:
        """Return the application, or a response that refuses the request."""
        if not self._is_authorized(scope):
            said = error_body(
                "no API key, or a wrong one", "authentication_error", "invalid_api_key"
            )
            return JSONResponse(said, 401, {"WWW-Authenticate": "Bearer"})
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > LONGEST:
            return _refuse_long
        return self._app

    def _is_authorized(self, scope: Any) -> bool:
        if self._api_key is None or not scope["path"].startswith("/v1/"):
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self._api_key.encode())


async def _refuse_long(scope: Any, receive: Any, send: Any) -> None:
    """Refuse a request, after reading what most clients send before they read an answer."""
    waits = any(name == b"expect" for name, _ in scope["headers"])  # for leave to send it
    read, more = 0, not waits
    with contextlib.suppress(TimeoutError):
        while more and read < 16 * LONGEST:
            message = await asyncio.wait_for(receive(), SILENCE)
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
    await JSONResponse(error_body(TOO_LONG), 413)(scope, receive, send)
