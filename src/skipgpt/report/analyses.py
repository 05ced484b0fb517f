"""The analyses of a report, in order; one more is a function from what was measured to a `Table`.

JSON, Markdown and page show every table of this list, each in the part that it names; a terminal
shows its findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from skipgpt.analysis import (
    DenseTrace,
    Table,
    TextTrace,
    keep_by_module,
    keep_by_position,
    keep_by_token,
    norms_by_layer,
    redundancy,
    routing_health,
    stress,
)


@dataclass(frozen=True)
class Measured:
    """What was measured of one checkpoint on one text.

    Attributes:
        trace: of the routed model at its own sparsity.
        dense: of its dense model.
        traces: of the routed model by sparsity, its own among them.
        scores: of tasks, by task and sparsity; None is the dense model.
    """

    trace: TextTrace
    dense: DenseTrace
    traces: Mapping[float, TextTrace]
    scores: Mapping[str, Mapping[float | None, float]]


ANALYSES: tuple[Callable[[Measured], Table], ...] = (
    lambda of: keep_by_module(of.trace),
    lambda of: keep_by_position(of.trace),
    lambda of: keep_by_token(of.trace, of.dense),
    lambda of: routing_health(of.trace),
    lambda of: redundancy(of.dense),
    lambda of: stress(of.dense, of.traces, of.scores),
    lambda of: norms_by_layer(of.dense, of.traces),
)
