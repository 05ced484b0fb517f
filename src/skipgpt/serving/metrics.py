"""The metrics of `/metrics`, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from skipgpt.serving.generation import Completion


class Metrics:
    """Metrics of one server.

    Attributes:
        waiting: queued requests.
        running: running requests.
        cancelled: requests whose client disconnected.
        answers: replies by path and status.

    Example:
        rate(skipgpt_generated_tokens_total[1m])                 tokens per second
        skipgpt_skipped_total / skipgpt_decisions_total          measured sparsity
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.answers = Counter(
            "skipgpt_answers", "Replies", ["path", "status"], registry=self._registry
        )
        self.waiting = Gauge("skipgpt_waiting", "Queued requests", registry=self._registry)
        self.running = Gauge("skipgpt_running", "Requests in the model", registry=self._registry)
        self.cancelled = self._counter("skipgpt_cancelled", "Requests whose client left")
        self._prompt = self._counter("skipgpt_prompt_tokens", "Tokens of prompts")
        self._generated = self._counter("skipgpt_generated_tokens", "Tokens generated")
        self._decisions = self._counter("skipgpt_decisions", "(token, module) pairs decided about")
        self._skipped = self._counter("skipgpt_skipped", "Pairs of those that did not run")
        self._sparsity = Gauge(
            "skipgpt_sparsity", "Share of pairs skipped since the start", registry=self._registry
        )
        self._speed = Gauge(
            "skipgpt_tokens_per_second",
            "Generated tokens per second of the newest request, its prompt included",
            registry=self._registry,
        )
        self._seconds = Histogram(
            "skipgpt_request_seconds", "In the model", registry=self._registry
        )
        self._all = self._kept_out = 0

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

    def _counter(self, name: str, said: str) -> Counter:
        return Counter(name, said, registry=self._registry)
