"""Measures what a model saves on a text at a threshold."""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.cost import Savings
from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.routing.calibration import Seen
from skipgpt.routing.decision import Site, Threshold


class Meter:
    """Runs blocks [N, T] at thresholds and counts, in one unit, what each run saves.

    Attributes:
        keep: keep ratios of every run, by threshold.
        shares: share that each run saved, by threshold.

    Example:
        find_threshold(Meter(model, blocks, savings(model, "flops", 128.5)), 0.25, start=0.0)
    """

    def __init__(
        self, model: nn.Module, blocks: Tensor, saved: Savings, batch_size: int = 8
    ) -> None:
        self._model, self._blocks, self._batch_size = model, blocks, batch_size
        self._saved = saved
        self.keep: dict[float, dict[Site, float]] = {}
        self.shares: dict[float, float] = {}

    def __call__(self, threshold: float) -> Seen:
        """Run all blocks at a threshold."""
        with (
            use_rule(self._model, Threshold(threshold)),
            execution(self._model, "sparse"),
            record_routing(self._model) as trace,
        ):
            total_loss(self._model, self._blocks, self._batch_size)
        margins, keep = trace.margins(), trace.keep_ratios()
        weights, share = trace.margin_weights(self._saved.by_site), self._saved.share(keep)
        self.keep[threshold], self.shares[threshold] = keep, share
        return Seen(margins, share, weights, self._saved.in_proportion(keep) - share)
