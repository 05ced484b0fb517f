"""The FastAPI application: paths, errors in OpenAI's format, streams."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException

from skipgpt.config import check_pair
from skipgpt.data.chat import chat_ids
from skipgpt.data.encoding import encode_prompt
from skipgpt.errors import ConfigError, DataError
from skipgpt.model.loading.limits import check_ids, check_length
from skipgpt.model.sparsity import threshold_at
from skipgpt.model.state import routing_state
from skipgpt.serving.engine import Engine, QueueFullError, RequestHandle, StoppingError
from skipgpt.serving.generation import GenerationRequest, TextChunk
from skipgpt.serving.metrics import Metrics
from skipgpt.serving.middleware import ServerMiddleware
from skipgpt.serving.protocol import ChatRequest, CompletionRequest
from skipgpt.serving.replies import Reply, error_body

logger = logging.getLogger("skipgpt")

PROBED = ["GET", "HEAD"]
"""Methods of paths that load balancers ask for."""
FAILED = "the server failed; see its log"
CHECK = 0.5
"""Seconds between checks that a client without streaming is still connected."""
AnyRequest = CompletionRequest | ChatRequest


def build_app(
    engine: Engine, name: str, metrics: Metrics, *, context: int, api_key: str | None = None,
    allowed_origins: Sequence[str] = (),
) -> FastAPI:  # fmt: skip
    """Build the application, for any ASGI server.

    Args:
        engine: runs the requests.
        name: model name for clients.
        metrics: what `/metrics` shows.
        context: maximum tokens of a prompt and its continuation.
        api_key: bearer token that requests to `/v1/` need; None requires none.
        allowed_origins: origins allowed by CORS; `*` is any.

    Example:
        uvicorn.run(build_app(Engine(model, tokenizer, metrics), "nano", metrics, context=512))
    """
    # No documentation pages: they load external scripts and need no key.
    app = FastAPI(title="skipgpt", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(ServerMiddleware, metrics=metrics, api_key=api_key)
    if allowed_origins:  # outermost: CORS preflight requests carry no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
        )
    _errors(app, metrics)

    @app.api_route("/health", methods=PROBED)
    def health() -> Response:
        return JSONResponse({"status": "ok"} if engine.is_alive else {"status": "stopped"},
                            200 if engine.is_alive else 503)  # fmt: skip

    @app.api_route("/metrics", methods=PROBED)
    def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    card = {"id": name, "object": "model", "created": 0, "owned_by": "skipgpt"}

    @app.api_route("/v1/models", methods=PROBED)
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{asked:path}")
    def model(asked: str) -> dict[str, Any]:
        _refuse_other(name, asked)
        return card

    async def answer(
        asked: AnyRequest, ids: list[int], places: int | None, request: Request
    ) -> Response:
        _refuse_other(name, asked.model)
        running = engine.submit(_generation_request(engine, context, asked, ids, places))
        reply = Reply(name, isinstance(asked, ChatRequest), len(ids), places is not None)
        if asked.stream:
            chunks = _chunks(running, reply, asked.wants_usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        *pieces, done = await _all_of(running, request)
        return JSONResponse(reply.whole(pieces, done))

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        ids: Any = asked.prompt
        if isinstance(ids, str):  # in a thread, so as not to block others
            ids = await run_in_threadpool(encode_prompt, engine.tokenizer, ids)
        return await answer(asked, ids, asked.logprobs, request)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        turns = [message.turn() for message in asked.messages]
        ids = await run_in_threadpool(chat_ids, engine.tokenizer, turns, **asked.template_options)
        return await answer(asked, ids, asked.places, request)

    return app


def _generation_request(
    engine: Engine, context: int, asked: AnyRequest, ids: list[int], places: int | None
) -> GenerationRequest:
    """Check a request and return what to generate."""
    if not ids:
        raise HTTPException(400, "a prompt needs at least one token")
    check_ids("reading the prompt", engine.model, engine.tokenizer, torch.tensor(ids))
    check_length("reading the prompt", context, len(ids), asked.max_new_tokens or 1)
    check_pair(asked.sparsity, asked.budget)
    if asked.sparsity is not None:  # raises before generation starts
        threshold_at(routing_state(engine.model), asked.sparsity, asked.budget)
    return GenerationRequest(
        tuple(ids),
        asked.max_new_tokens or context - len(ids),
        asked.temperature,
        asked.top_p,
        asked.seed,
        asked.stop,
        asked.sparsity,
        asked.budget,
        places,
    )


def _refuse_other(name: str, asked: str | None) -> None:
    if asked not in (None, name):
        raise HTTPException(404, f"there is no model {asked!r} here; this is {name!r}")


async def _all_of(running: RequestHandle, request: Request) -> list[Any]:
    """Return all events of a request; cancel it when the client disconnects."""

    async def collected() -> list[Any]:
        return [event async for event in running]

    task = asyncio.create_task(collected())
    while not task.done():
        await asyncio.wait({task}, timeout=CHECK)
        if await request.is_disconnected():
            running.cancelled.set()
    return task.result()


async def _chunks(running: RequestHandle, reply: Reply, wants_usage: bool) -> AsyncIterator[str]:
    """Yield server-sent events; cancel the request when the client disconnects."""
    events = aiter(running)
    try:
        if reply.chat:
            yield _event(reply.opening())
        async for event in events:
            if isinstance(event, TextChunk):
                yield _event(reply.chunk(event))
                continue
            yield _event(reply.closing(event))
            if wants_usage:
                yield _event(reply.usage_chunk(event))
    except StoppingError as error:
        yield _event(error_body(str(error), "server_error"))
    except Exception:  # the status is sent already
        logger.exception("a request failed")
        yield _event(error_body(FAILED, "server_error"))
    finally:
        running.cancelled.set()
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _errors(app: FastAPI, metrics: Metrics) -> None:
    """Return every error in OpenAI's format."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        said = "; ".join(
            f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}"
            for each in error.errors()
        )
        return JSONResponse(error_body(said), 400)

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> Response:
        return JSONResponse(error_body(str(error.detail)), error.status_code)

    @app.exception_handler(DataError)
    @app.exception_handler(ConfigError)
    @app.exception_handler(QueueFullError)
    @app.exception_handler(StoppingError)
    async def not_done(_: Request, error: Exception) -> Response:
        others = {QueueFullError: ("rate_limit_error", 429), StoppingError: ("server_error", 503)}
        kind, status = others.get(type(error), ("invalid_request_error", 400))
        return JSONResponse(error_body(str(error), kind), status)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        metrics.count_reply(request.scope, 500)  # this reply bypasses the middleware
        return JSONResponse(error_body(FAILED, "server_error"), 500)
