"""A request queue, and one thread that runs the requests through the model one by one."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from skipgpt.serving.generation import Completion, GenerationRequest, TextChunk, run_request
from skipgpt.serving.metrics import Metrics

MAX_QUEUED = 1000
"""Maximum number of waiting requests."""


class QueueFullError(Exception):
    """The request queue is full."""


class StoppingError(Exception):
    """The server is stopping, and the request did not finish in time."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; ask again")


class RequestHandle:
    """A submitted request: iterate over its text chunks and final `Completion`, or cancel it.

    Attributes:
        request: what to generate.
        cancelled: set it to end the request at its next token.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request, self.cancelled = request, threading.Event()
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def send(self, event: Any) -> None:
        """Pass on a chunk, the completion or an error; from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[TextChunk | Completion]:
        """Yield text chunks, then the completion; raise any error of the model."""
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Completion):
                    return
        finally:  # also when the client has disconnected
            self.cancelled.set()


class Engine:
    """A model and the thread that it runs in.

    Args:
        model: with routers, calibrated if requests may set a sparsity.
        tokenizer: tokenizer of the base model.
        metrics: updated when a request ends.

    Example:
        async for event in engine.submit(GenerationRequest((1, 2, 3), max_tokens=8)):
            print(event)
    """

    def __init__(self, model: Any, tokenizer: Any, metrics: Metrics) -> None:
        self.model, self.tokenizer, self._metrics = model, tokenizer, metrics
        self._queue: queue.Queue[RequestHandle | None] = queue.Queue()
        self._current: RequestHandle | None = None
        self._aborted = threading.Event()
        self._thread = threading.Thread(target=self._work, name="skipgpt-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    def submit(self, request: GenerationRequest) -> RequestHandle:
        """Queue a request; call it from a running event loop.

        Raises:
            QueueFullError: the queue is full.
        """
        if self._queue.qsize() >= MAX_QUEUED:
            raise QueueFullError(f"{MAX_QUEUED:,} requests wait already; ask again later")
        running = RequestHandle(request)
        self._metrics.waiting.inc()
        self._queue.put(running)
        return running

    def abort_all(self) -> None:
        """Abort all requests, the running one at its next token; each gets a `StoppingError`."""
        self._aborted.set()
        if running := self._current:
            running.cancelled.set()

    def close(self) -> None:
        """Finish the queued requests, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (running := self._queue.get()) is not None:
            self._metrics.waiting.dec()
            self._current = running
            if self._aborted.is_set():
                running.send(StoppingError())
            elif running.cancelled.is_set():
                self._metrics.cancelled.inc()
                running.send(Completion("length", 0, 0, 0))
            else:
                self._run(running)
            self._current = None

    def _run(self, running: RequestHandle) -> None:
        began = time.perf_counter()
        try:
            with self._metrics.running.track_inprogress():
                done = run_request(
                    self.model, self.tokenizer, running.request, running.send, running.cancelled
                )
        except Exception as error:  # a failed request must not end the thread
            running.send(error)
            return
        cut = running.cancelled.is_set()
        if cut:
            self._metrics.cancelled.inc()
        self._metrics.finish(len(running.request.ids), done, time.perf_counter() - began)
        running.send(StoppingError() if cut and self._aborted.is_set() else done)
