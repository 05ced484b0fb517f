"""All static methods by the name that the command line knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from skipgpt.baselines.blockpruner import blockpruner
from skipgpt.baselines.laco import laco
from skipgpt.baselines.llm_drop import llm_drop
from skipgpt.baselines.search import Method
from skipgpt.baselines.shortened import shortened_ppl, shortened_taylor
from skipgpt.baselines.shortgpt import shortgpt
from skipgpt.baselines.sleb import sleb
from skipgpt.baselines.units import Kind


@dataclass(frozen=True)
class Static:
    """One method.

    Attributes:
        order: the function that chooses; see `search.Method`.
        units: what it removes.
        source: whose idea it is, in a line.
        most: the largest share of all modules that it can remove.
        changes_weights: whether it must be given a copy, and a budget's answer is no other's.
    """

    order: Method
    units: Kind
    source: str
    most: float = 1.0
    changes_weights: bool = False


STATIC: Mapping[str, Static] = {
    "shortgpt": Static(shortgpt, "layers", "block influence, one shot (arXiv 2403.03853)"),
    "sleb": Static(sleb, "layers", "perplexity, one by one (arXiv 2402.09025)"),
    "shortened-ppl": Static(shortened_ppl, "layers", "perplexity, one shot (arXiv 2402.02834)"),
    "shortened-taylor": Static(
        shortened_taylor, "layers", "weight x gradient, one shot (arXiv 2402.02834)"
    ),
    "llm-drop": Static(llm_drop, "modules", "input-output similarity (arXiv 2406.15786)"),
    "llm-drop-attn": Static(
        partial(llm_drop, modules="attn"), "modules", "the same, attention only", most=0.5
    ),
    "llm-drop-mlp": Static(
        partial(llm_drop, modules="mlp"), "modules", "the same, MLPs only", most=0.5
    ),
    "blockpruner": Static(blockpruner, "modules", "perplexity, one by one (arXiv 2406.10594)"),
    "laco": Static(laco, "layers", "merging of layers (arXiv 2402.11187)", changes_weights=True),
}
