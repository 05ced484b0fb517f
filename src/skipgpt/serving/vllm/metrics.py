"""How much is skipped, among the metrics that vLLM shows.

Models run in processes of their own. What they count reaches `/metrics` through files, where
PROMETHEUS_MULTIPROC_DIR names a folder for them, as `skipgpt serve` does.
"""

from __future__ import annotations

import os


class Tally:
    """Counts of one worker.

    Attributes:
        counts: whether anybody can see them; of tensor-parallel ranks, which decide alike, the
            first counts.
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
