"""All static methods, by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from skipgpt.baselines.fisher import fisher
from skipgpt.baselines.greedy import blockpruner, sleb
from skipgpt.baselines.laco import laco
from skipgpt.baselines.shortened import ends, losses_alone, taylor
from skipgpt.baselines.similarity import influences
from skipgpt.removal.search import Method, Score, one_shot
from skipgpt.removal.units import Kind, Unit, units_of
from skipgpt.routing.decision import MODULES, Module


@dataclass(frozen=True)
class Static:
    """A static method, which has a score or a search.

    Attributes:
        units: what it removes.
        source: what it ranks by and its paper, in a line.
        score: scores units, of which the least go first; see `search.Score`.
        search: chooses what to remove; see `search.Method`.
        modules: the kinds of module that it can remove.
        protected: gives those of all units that go last, for a score.
        changes_weights: whether it needs a copy of the model, and a search for every budget.
    """

    units: Kind
    source: str
    score: Score | None = None
    search: Method | None = None
    modules: tuple[Module, ...] = MODULES
    protected: Callable[[Sequence[Unit]], Collection[Unit]] | None = None
    changes_weights: bool = False

    def order(self, model: nn.Module, blocks: Tensor, removals: int, **given: Any) -> list[Unit]:
        """Choose what to remove; arguments, result, errors and example are as of `Method`."""
        if self.search:
            return self.search(model, blocks, removals, **given)
        assert self.score
        scores, units = self.score(model, blocks, **given), self.candidates(model)
        last = self.protected(units) if self.protected else ()
        return one_shot({unit: scores[unit] for unit in units}, removals, protected=last)

    def candidates(self, model: nn.Module) -> list[Unit]:
        """Return all units that it may remove from a model, in forward order."""
        units = units_of(model, self.units)
        return [unit for unit in units if {site.module for site in unit} <= {*self.modules}]


STATIC: Mapping[str, Static] = {
    "shortgpt": Static("layers", "block influence, one shot (arXiv 2403.03853)", influences),
    "sleb": Static("layers", "perplexity, one by one (arXiv 2402.09025)", search=sleb),
    "shortened-ppl": Static("layers", "perplexity, one shot (arXiv 2402.02834)", losses_alone),
    "shortened-taylor": Static(
        "layers", "weight x gradient, one shot (arXiv 2402.02834)", taylor, protected=ends
    ),
    "llm-drop": Static("modules", "input-output similarity (arXiv 2406.15786)", influences),
    "llm-drop-attn": Static("modules", "the same, attention only", influences, modules=("attn",)),
    "llm-drop-mlp": Static("modules", "the same, MLPs only", influences, modules=("mlp",)),
    "blockpruner": Static(
        "modules", "perplexity, one by one (arXiv 2406.10594)", search=blockpruner
    ),
    "fisher": Static("modules", "second-order cost, the mean of each module; one shot", fisher),
    "fisher-flops": Static(
        "modules", "the same, per FLOP that is saved", partial(fisher, per_flop=True)
    ),
    "laco": Static(
        "layers", "merging of layers (arXiv 2402.11187)", search=laco, changes_weights=True
    ),
}
