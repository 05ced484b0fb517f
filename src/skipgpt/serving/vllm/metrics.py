"""Counters of decisions and skips, among the metrics of vLLM.

Models run in separate processes. Their counts reach `/metrics` through files in the folder that
PROMETHEUS_MULTIPROC_DIR names, which `skipgpt serve` sets.
"""

from __future__ import annotations

import os


class Tally:
    """Counters of one worker.

    Attributes:
        counts: whether to count: only if the counters are exported, and only on the first
            tensor-parallel rank, since all ranks decide alike.
    """

    def __init__(self) -> None:
        from vllm.distributed import get_tensor_model_parallel_rank

        shown = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        self.counts = shown and get_tensor_model_parallel_rank() == 0
        if not self.counts:
            return
        from prometheus_client import CollectorRegistry, Counter

        registry = CollectorRegistry()
        said = "(token, module) pairs "
        self._decisions = Counter("skipgpt_decisions", said + "decided about", registry=registry)
        self._skipped = Counter("skipgpt_skipped", said + "that did not run", registry=registry)

    def add(self, decisions: int, skipped: int) -> None:
        """Count a step."""
        self._decisions.inc(decisions)
        self._skipped.inc(skipped)
