"""Counters of decisions, skips and steps without routers, among the metrics of vLLM.

Models run in separate processes. Their counts reach `/metrics` through files in the folder that
PROMETHEUS_MULTIPROC_DIR names, which `skipgpt serve` sets.
"""

from __future__ import annotations

import os

from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank


class Tally:
    """Counters of one worker: decisions, skips, and steps without routers.

    Attributes:
        counts: whether to count: only if the counters are exported, and only on the first
            tensor-parallel rank, since all ranks decide alike.
    """

    def __init__(self) -> None:
        shown = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        self.counts = shown and get_tensor_model_parallel_rank() == 0
        if not self.counts:
            return
        from prometheus_client import CollectorRegistry, Counter

        registry = CollectorRegistry()
        said = "(token, module) pairs "
        self._decisions = Counter("skipgpt_decisions", said + "decided about", registry=registry)
        self._skipped = Counter("skipgpt_skipped", said + "that did not run", registry=registry)
        without = "Steps with too many requests in decode to run routers"
        self._dense_steps = Counter("skipgpt_dense_steps", without, registry=registry)

    def add(self, decisions: int, skipped: int, is_dense: bool) -> None:
        """Count a step."""
        if get_pp_group().is_first_rank:  # later stages see the same steps
            self._dense_steps.inc(is_dense)
        self._decisions.inc(decisions)
        self._skipped.inc(skipped)
