"""Keep rates along a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from skipgpt.analysis.statistics import sliding_mean, spearman
from skipgpt.analysis.table import Table
from skipgpt.analysis.trace import TextTrace

FLAT = 0.01
"""A smaller difference of first and last quarter, in share of tokens, counts as no change."""


def keep_by_position(trace: TextTrace, width: int = 100, points: int = 64) -> Table:
    """Tabulate the sliding mean of keep rates by position, attention and MLP separately.

    The paper's open question: does compute move from the MLP to attention as context grows? It
    saw attention rise from about 0.5 to 0.75 and the MLP fall from 0.7 to 0.5 in windows of 100
    tokens, averaged over 50 texts.

    Args:
        trace: of one row or many; rates are means over rows.
        width: tokens per window, at most a quarter of the longest row.
        points: approximate number of table rows.
    """
    attn, mlp = (_by_position(trace, kind) for kind in (0, 1))
    width = max(1, min(width, len(attn) // 4))
    curves = [sliding_mean(each, width) for each in (attn, mlp)]
    starts = torch.linspace(0, len(curves[0]) - 1, min(points, len(curves[0]))).round().long()
    rows = tuple(
        (n + width // 2, curves[0][n].item(), curves[1][n].item())
        for n in sorted(set(starts.tolist()))
    )
    facts, findings = {"width": float(width)}, []
    place = torch.arange(len(attn)).double()
    for name, key, rates, paper in (
        ("Attention", "attn", attn, "rises"),
        ("The MLP", "mlp", mlp, "falls"),
    ):
        quarter = max(1, len(rates) // 4)
        first, last = rates[:quarter].mean().item(), rates[-quarter:].mean().item()
        facts[f"{key} first quarter"], facts[f"{key} last quarter"] = first, last
        facts[f"{key} rank correlation"] = spearman(place, rates)
        change = last - first
        verb = "stays" if abs(change) < FLAT else "rises" if change > 0 else "falls"
        findings.append(
            f"{name} {verb}: {first:.1%} of tokens in the first quarter of a row, {last:.1%} in "
            f"the last (the paper: it {paper})."
        )
    return Table(
        "positions",
        "Does compute move from the MLP to attention along the sequence (open question 2 of the "
        "paper)?",
        ("position", "attn keep rate", "mlp keep rate"),
        rows,
        tuple(findings),
        facts,
    )


def _by_position(trace: TextTrace, kind: int) -> Tensor:
    """Mean keep rate [T] of attention (0) or MLP (1) at each position of a row."""
    each = trace.keep[:, kind].double().mean(0)
    place = trace.text.position
    sums = torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add(0, place, each)
    return sums / torch.bincount(place)
