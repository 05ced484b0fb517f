"""Keep rates of each module."""

from __future__ import annotations

from skipgpt.analysis.table import Table
from skipgpt.analysis.trace import TextTrace


def keep_by_module(trace: TextTrace) -> Table:
    """Tabulate every module's keep rate, and the ratio of attention to MLP.

    The paper's open question: should attention and MLP still come one to one in every layer?

    Example:
        keep_by_module(trace).facts["ratio"]
    """
    rates = trace.keep.double().mean(-1)
    attn, mlp = rates.mean(0).tolist()
    rows = tuple((n + 1, *rates[n].tolist()) for n in range(len(rates)))
    ratio = attn / mlp if mlp else float("inf")
    more = "attention" if attn < mlp else "the MLP"
    return Table(
        "modules",
        "What share of tokens runs each module, and does one attention to one MLP still fit (open "
        "question 1 of the paper)?",
        ("layer", "attn keep rate", "mlp keep rate"),
        rows,
        (
            f"Attention runs for {attn:.1%} of tokens, the MLP for {mlp:.1%}: {ratio:.2f} "
            f"attentions to an MLP; {more} is skipped more"
            + (" (the paper: attention, at every budget)." if attn != mlp else "."),
        ),
        {"attn": attn, "mlp": mlp, "ratio": ratio},
    )
