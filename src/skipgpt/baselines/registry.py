"""All static methods, by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from skipgpt.baselines.fisher import fisher
from skipgpt.baselines.greedy import blockpruner, sleb
from skipgpt.baselines.laco import laco
from skipgpt.baselines.shortened import shortened_ppl, shortened_taylor
from skipgpt.baselines.similarity import llm_drop, shortgpt
from skipgpt.removal.search import Method
from skipgpt.removal.units import Kind, Unit, units_of
from skipgpt.routing.decision import MODULES, Module


@dataclass(frozen=True)
class Static:
    """A static method.

    Attributes:
        order: the function that chooses; see `search.Method`.
        units: what it removes.
        source: what it ranks by and its paper, in a line.
        modules: the kinds of module that it can remove.
        changes_weights: whether it needs a copy of the model, and a search for every budget.
    """

    order: Method
    units: Kind
    source: str
    modules: tuple[Module, ...] = MODULES
    changes_weights: bool = False

    def candidates(self, model: nn.Module) -> list[Unit]:
        """Return all units that it may remove from a model, in forward order."""
        units = units_of(model, self.units)
        return [unit for unit in units if {site.module for site in unit} <= {*self.modules}]


STATIC: Mapping[str, Static] = {
    "shortgpt": Static(shortgpt, "layers", "block influence, one shot (arXiv 2403.03853)"),
    "sleb": Static(sleb, "layers", "perplexity, one by one (arXiv 2402.09025)"),
    "shortened-ppl": Static(shortened_ppl, "layers", "perplexity, one shot (arXiv 2402.02834)"),
    "shortened-taylor": Static(
        shortened_taylor, "layers", "weight x gradient, one shot (arXiv 2402.02834)"
    ),
    "llm-drop": Static(llm_drop, "modules", "input-output similarity (arXiv 2406.15786)"),
    "llm-drop-attn": Static(
        partial(llm_drop, modules="attn"), "modules", "the same, attention only", ("attn",)
    ),
    "llm-drop-mlp": Static(
        partial(llm_drop, modules="mlp"), "modules", "the same, MLPs only", ("mlp",)
    ),
    "blockpruner": Static(blockpruner, "modules", "perplexity, one by one (arXiv 2406.10594)"),
    "fisher": Static(fisher, "modules", "second-order cost, the mean of each module; one shot"),
    "fisher-flops": Static(
        partial(fisher, per_flop=True), "modules", "the same, per FLOP that is saved"
    ),
    "laco": Static(laco, "layers", "merging of layers (arXiv 2402.11187)", changes_weights=True),
}
