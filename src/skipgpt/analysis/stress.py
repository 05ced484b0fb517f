"""Stress test: what degrades first as the sparsity rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skipgpt.analysis.table import Cell, Table
from skipgpt.analysis.trace import DenseTrace, TextTrace

BEND = 0.1
"""A curve has no knee if it stays closer to its chord than this share of its height."""


def stress(
    dense: DenseTrace,
    traces: Mapping[float, TextTrace],
    tasks: Mapping[str, Mapping[float | None, float]] | None = None,
) -> Table:
    """Tabulate loss, closeness, entropy and norms at each sparsity against dense; find the knee.

    The paper's stress test went from 20 to 80 %; perplexity rose clearly only near 80 %. The knee
    is that of the routed model's own curve: dense is another model where LoRA has healed it.

    Traces of the same text, and scores of tasks if measured, are by requested sparsity; None is
    dense.

    Example:
        stress(dense, {s: trace_at(s) for s in (0.2, 0.4, 0.6)}).facts["knee"]
    """
    tasks = tasks or {}
    before = dense.norm.mean(-1)
    points: list[tuple[float, float]] = []
    rows: list[tuple[Cell, ...]] = [
        (
            *("dense", 0.0, dense.nll_per_token, 0.0, 0.0, 1.0),
            *(dense.entropy.mean().item(), 1.0, 1.0),
            *(scores.get(None) for scores in tasks.values()),
        )
    ]
    for asked, trace in sorted(traces.items()):
        measured, ratio = trace.measured, trace.norm.mean(-1) / before
        close = measured.closeness
        points.append((measured.sparsity["module"], measured.nll_per_token))
        rows.append(
            (
                asked,
                measured.sparsity["module"],
                measured.nll_per_token,
                measured.nll_per_token - dense.nll_per_token,
                close.kl_per_token if close else None,
                close.agreement if close else None,
                trace.entropy.mean().item(),
                ratio[-1].item(),
                ratio.log().abs().exp().max().item(),
                *(scores.get(asked) for scores in tasks.values()),
            )
        )
    knee = knee_of(points)
    facts = {"knee": points[knee][0]} if knee is not None else {}
    finding = "There is no knee: the loss does not bend upwards anywhere."
    if knee is not None:
        finding = (
            f"The knee is at {points[knee][0]:.0%}: from {points[0][0]:.0%} up to there the loss "
            f"changes by {points[knee][1] - points[0][1]:+.3f} nats, from there to "
            f"{points[-1][0]:.0%} by {points[-1][1] - points[knee][1]:+.3f}."
        )
    return Table(
        "stress",
        "How high can sparsity go, and what gives way first (paper: only near 80 %)?",
        (
            "asked",
            "module sparsity",
            "nats per token",
            "excess",
            "KL to dense",
            "agreement",
            "entropy, nats",
            "norm, last layer",
            "norm, worst layer",
            *tasks,
        ),
        tuple(rows),
        (
            finding,
            *_kept(tasks),
            "KL is KL(dense || routed) in nats per token; agreement is the share of tokens at "
            "which both have the same most likely next one.",
            "Norms are those of the residual stream over dense ones; 1 is no change.",
        ),
        facts,
        part="cost",
    )


def _kept(tasks: Mapping[str, Mapping[float | None, float]]) -> tuple[str, ...]:
    """Say what share of each task's dense score the lowest and highest sparsity keep."""
    said = []
    for name, scores in tasks.items():
        asked = sorted(each for each in scores if each is not None)
        if asked and (dense := scores.get(None)):
            ends = dict.fromkeys((asked[0], asked[-1]))
            kept = " and ".join(f"{scores[each] / dense:.1%} at {each:.0%}" for each in ends)
            said.append(f"Of its dense score of {dense:.3f}, {name} keeps {kept}.")
    return tuple(said)


def norms_by_layer(dense: DenseTrace, traces: Mapping[float, TextTrace]) -> Table:
    """Tabulate the norm of the stream entering each layer, relative to the dense model's."""
    before = dense.norm.mean(-1)
    ratios = {asked: trace.norm.mean(-1) / before for asked, trace in sorted(traces.items())}
    names = [*(f"into layer {n + 1}" for n in range(len(before) - 1)), "out of the last"]
    return Table(
        "norms",
        "Where does skipping change the size of the residual stream?",
        ("place", *(f"{asked:.0%}" for asked in ratios)),
        tuple(
            (name, *(ratio[n].item() for ratio in ratios.values())) for n, name in enumerate(names)
        ),
        part="cost",
    )


def knee_of(points: Sequence[tuple[float, float]]) -> int | None:
    """Return the index of the point furthest below the chord from first to last; None if no bend.

    Points are sparsity and loss, in rising order of sparsity.

    Example:
        >>> knee_of([(0.0, 2.0), (0.2, 2.1), (0.4, 2.2), (0.6, 3.5), (0.8, 6.0)])
        2
    """
    if len(points) < 3:
        return None
    (left, low), (right, high) = points[0], points[-1]
    if high <= low or right <= left:
        return None
    below = [(x - left) / (right - left) - (y - low) / (high - low) for x, y in points]
    best = max(range(len(points)), key=below.__getitem__)
    return best if below[best] >= BEND else None
