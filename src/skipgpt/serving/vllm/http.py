"""Let vLLM's server take `sparsity`, `budget` and chats as our own server does."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse

from skipgpt.serving.replies import error_body

_NO_BEAMS = error_body("beam search takes no sparsity: vLLM would leave it out without a word")
FIELDS = ("sparsity", "budget")
PATHS = ("/v1/completions", "/v1/chat/completions")


class SparsityField:
    """ASGI middleware that passes `sparsity` and `budget` to the plug-in as extra arguments.

    Example:
        vllm serve out/llama-25-merged --middleware skipgpt.serving.vllm.http.SparsityField
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Rewrite the body of a request that has one of the fields; leave all others alone."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self._app(scope, receive, send)
            return
        parts = []
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = rewrite_body(b"".join(parts))
        if body is None:
            await JSONResponse(_NO_BEAMS, 400)(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        first = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return first.pop() if first else await receive()

        await self._app(scope | {"headers": headers}, again, send)


def _parsed(body: bytes) -> dict[str, Any]:
    """Parse a body; empty where it is no JSON object."""
    try:
        asked = json.loads(body)
    except ValueError:
        return {}
    return asked if isinstance(asked, dict) else {}


def rewrite_body(body: bytes) -> bytes | None:
    """Rewrite the body of a request for vLLM, where that is needed; None refuses it.

    `sparsity` and `budget` go among vLLM's extra arguments, which beam search would leave out. A
    chat whose last turn is the assistant's continues that turn, unless the request says otherwise.

    Example:
        >>> rewrite_body(b'{"prompt": "a", "sparsity": 0.4}')
        b'{"prompt": "a", "vllm_xargs": {"sparsity": 0.4}}'
    """
    asked = _parsed(body)
    goes_on = _goes_on(asked)
    if goes_on or set(FIELDS) & set(asked):
        asked |= goes_on
        others = asked.get("vllm_xargs") or {}
        given = {name: asked.pop(name) for name in FIELDS if name in asked}
        given = {name: value for name, value in given.items() if value is not None}
        if given and isinstance(others, dict):
            asked["vllm_xargs"] = others | given
        body = json.dumps(asked).encode()
    beams = asked.get("use_beam_search") and set(FIELDS) & set(asked.get("vllm_xargs") or ())
    return None if beams else body


def _goes_on(asked: dict[str, Any]) -> dict[str, bool]:
    """Return fields that make a chat continue an assistant's turn at its end."""
    turns = asked.get("messages")
    last = turns[-1] if isinstance(turns, list) and turns else None
    said = {"continue_final_message", "add_generation_prompt"} & set(asked)
    if said or not isinstance(last, dict) or last.get("role") != "assistant":
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}
