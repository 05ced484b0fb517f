"""The metrics of `/metrics`, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from skipgpt.serving.generation import Completion


class Metrics:
    """Metrics of one server.

    Attributes:
        waiting: queued requests.
        running: running requests.
        cancelled: requests whose client disconnected.

    Example:
        rate(skipgpt_generated_tokens_total[1m])                 tokens per second
        skipgpt_skipped_total / skipgpt_decisions_total          measured sparsity
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self._answers = counter("skipgpt_answers", "Replies", ["path", "status"])
        self.waiting = gauge("skipgpt_waiting", "Queued requests")
        self.running = gauge("skipgpt_running", "Requests in the model")
        self.cancelled = counter("skipgpt_cancelled", "Requests whose client left")
        self._prompt = counter("skipgpt_prompt_tokens", "Tokens of prompts")
        self._generated = counter("skipgpt_generated_tokens", "Tokens generated")
        self._decisions = counter("skipgpt_decisions", "(token, module) pairs decided about")
        self._skipped = counter("skipgpt_skipped", "Pairs of those that did not run")
        self._sparsity = gauge("skipgpt_sparsity", "Share of pairs skipped since the start")
        self._speed = gauge(
            "skipgpt_tokens_per_second",
            "Generated tokens per second of the newest request, its prompt included",
        )
        self._seconds = Histogram("skipgpt_request_seconds", "In the model", registry=registry)
        self._all = self._kept_out = 0

    def count_reply(self, scope: Mapping[str, Any], status: int) -> None:
        """Count the reply to a request with this ASGI scope, by its route."""
        # Unknown paths share a label: else clients could create labels without limit.
        path = getattr(scope.get("route"), "path", "other")
        self._answers.labels(path, str(status)).inc()

    def finish(self, prompt_tokens: int, done: Completion, seconds: float) -> None:
        """Count a finished request."""
        self._prompt.inc(prompt_tokens)
        self._generated.inc(done.new_tokens)
        self._decisions.inc(done.decisions)
        self._skipped.inc(done.skipped)
        self._all, self._kept_out = self._all + done.decisions, self._kept_out + done.skipped
        self._sparsity.set(self._kept_out / max(1, self._all))
        self._speed.set(done.new_tokens / seconds)
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return generate_latest(self._registry)
