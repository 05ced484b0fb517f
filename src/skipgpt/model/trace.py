"""Recorded decisions, one step per forward, as values.

Shapes: B batch, T tokens, N real tokens, M modules (attention and MLP of each layer in turn).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from skipgpt.routing.budget import saved_share
from skipgpt.routing.decision import MODULES, Decision, Module, ModuleDecision, Site


@dataclass(frozen=True, eq=False)
class Step:
    """One forward through the model.

    Attributes:
        decisions: by layer.
        token_mask: [B, T] bool, False at padding; None where all tokens are real.
    """

    decisions: dict[int, Decision]
    token_mask: Tensor | None

    def gates(self, module: Module | None = None) -> list[Tensor]:
        """The gates [B, T] of all sites, or of one kind of module, in layer order."""
        return [each.gate for each in self._each(module)]

    def keeps(self, module: Module | None = None) -> list[Tensor]:
        """Which tokens ran, bool [B, T], in the order of `gates`."""
        return [each.keep for each in self._each(module)]

    def _each(self, module: Module | None) -> list[ModuleDecision]:
        kinds = MODULES if module is None else (module,)
        return [getattr(self.decisions[n], k) for n in sorted(self.decisions) for k in kinds]

    def sparsity(self) -> Tensor:
        """Share of skipped decisions, a scalar that carries the gates' gradient."""
        gates = self.gates()
        return saved_share(gates, [1 / len(gates)] * len(gates), self.token_mask)

    def saved(self, weights: Mapping[Site, float], overhead: float = 0.0) -> Tensor:
        """Share of a cost saved, less an overhead, with the gates' gradient; see `saved_share`."""
        shares = [weights[Site(n, k)] for n in sorted(self.decisions) for k in MODULES]
        return saved_share(self.gates(), shares, self.token_mask) - overhead

    @torch.no_grad()
    def stacked(self, what: Literal["margin", "keep"]) -> Tensor:
        """The margins, or which ran, of real tokens: [M, N] in the order of `gates`."""
        each: list[Tensor] = [getattr(decision, what) for decision in self._each(None)]
        real = self.token_mask
        return torch.stack([t.flatten() if real is None else t[real] for t in each])

    def margins(self) -> Tensor:
        """The margins of real tokens, flat."""
        return self.stacked("margin").flatten()

    def margin_weights(self, weights: Mapping[Site, float]) -> Tensor:
        """The weight of each margin's site, flat, in the order of `margins`."""
        each = [weights[Site(n, k)] for n in sorted(self.decisions) for k in MODULES]
        first = next(iter(self.decisions.values())).attn.keep
        tokens = first.numel() if self.token_mask is None else int(self.token_mask.sum())
        return torch.tensor(each, device=first.device).repeat_interleave(tokens)


class KeepCounts:
    """How many tokens ran each module, as running sums: its size does not grow with the text."""

    counts_only: ClassVar[bool] = True
    """Whether a recorder needs only which modules ran, not the margins."""

    def __init__(self) -> None:
        self._kept: dict[Site, int | Tensor] = {}
        self._tokens: dict[int, int | Tensor] = {}

    def record(self, layer: int, decision: Decision, token_mask: Tensor | None) -> None:
        """Add one layer's decision; sums stay on the device unless the host knows them."""
        keep = decision.attn.keep
        tokens = keep.numel() if token_mask is None else token_mask.sum()
        for module in MODULES:
            each, site = getattr(decision, module), Site(layer, module)
            if each.kept == keep.numel():
                kept = tokens
            elif token_mask is not None:
                kept = (each.keep & token_mask).sum()
            else:
                kept = each.keep.sum() if each.kept is None else each.kept
            self._kept[site] = self._kept.get(site, 0) + kept
        self._tokens[layer] = self._tokens.get(layer, 0) + tokens

    @property
    def tokens(self) -> int:
        """Real tokens so far; 0 where no decision was made."""
        return int(next(iter(self._tokens.values()), 0))

    def kept(self) -> dict[Site, int]:
        """How many real tokens so far ran each module."""
        return {site: int(count) for site, count in sorted(self._kept.items())}

    def keep_ratios(self) -> dict[Site, float]:
        """Share of real tokens that ran each module."""
        tokens = max(1, self.tokens)
        return {site: count / tokens for site, count in self.kept().items()}

    def sparsity(self, module: Module | None = None) -> float:
        """Share of skipped decisions over real tokens, of all modules or of one kind."""
        ratios = [r for site, r in self.keep_ratios().items() if module in (None, site.module)]
        return 1 - sum(ratios) / len(ratios) if ratios else 0.0


@dataclass
class Trace:
    """Every forward that ran while `record_routing` was open.

    Attributes:
        steps: one entry per forward, oldest first.
    """

    counts_only: ClassVar[bool] = False
    steps: list[Step] = field(default_factory=list)

    def record(self, layer: int, decision: Decision, token_mask: Tensor | None) -> None:
        """Keep the decision of one layer; the first layer opens a new step."""
        if not self.steps or layer in self.steps[-1].decisions:
            self.steps.append(Step({}, token_mask))
        self.steps[-1].decisions[layer] = decision

    def counts(self) -> KeepCounts:
        """How many real tokens ran each module."""
        counts = KeepCounts()
        for step in self.steps:
            for layer, decision in step.decisions.items():
                counts.record(layer, decision, step.token_mask)
        return counts

    def keep_ratios(self) -> dict[Site, float]:
        """Share of real tokens that each site ran."""
        return self.counts().keep_ratios()

    def sparsity(self, module: Module | None = None) -> float:
        """Share of skipped decisions over real tokens, of all modules or of one kind."""
        return self.counts().sparsity(module)

    def margins(self) -> Tensor:
        """The margins of all real tokens and sites, flat."""
        return torch.cat([step.margins() for step in self.steps])

    def margin_weights(self, weights: Mapping[Site, float]) -> Tensor:
        """What skipping each decision saves, flat, in the order of `margins`.

        `weights` are what each site saves where every token skips it.
        """
        each = torch.cat([step.margin_weights(weights) for step in self.steps])
        return each * (len(weights) / len(each))


Recorder = KeepCounts | Trace
"""Receives every decision while it is open."""
