"""What was decided: the forwards that were recorded, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skipgpt.routing.budget import keep_ratio, saved_share
from skipgpt.routing.decision import MODULES, Decision, Module, Site


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
        kinds = MODULES if module is None else (module,)
        return [getattr(self.decisions[n], k).gate for n in sorted(self.decisions) for k in kinds]

    def keeps(self, module: Module | None = None) -> list[Tensor]:
        """Likewise the [B, T] bools of what ran."""
        kinds = MODULES if module is None else (module,)
        return [getattr(self.decisions[n], k).keep for n in sorted(self.decisions) for k in kinds]

    def sparsity(self) -> Tensor:
        """Share of skipped decisions, a scalar that carries the gates' gradient."""
        return 1 - keep_ratio(self.gates(), self.token_mask)

    def saved(self, weights: Mapping[Site, float], overhead: float = 0.0) -> Tensor:
        """Share of a cost that is saved, a scalar that carries the gates' gradient.

        Args:
            weights: what each site saves where every token skips it.
            overhead: what routing adds.
        """
        shares = [weights[Site(n, k)] for n in sorted(self.decisions) for k in MODULES]
        return saved_share(self.gates(), shares, self.token_mask) - overhead

    def margins(self) -> Tensor:
        """The margins of real tokens, flat."""
        each = [getattr(self.decisions[n], k).margin for n in self.decisions for k in MODULES]
        chosen = [m.flatten() if self.token_mask is None else m[self.token_mask] for m in each]
        return torch.cat(chosen).detach()

    def margin_weights(self, weights: Mapping[Site, float]) -> Tensor:
        """The weight of its site for each of the margins, flat and in their order."""
        each = [weights[Site(n, k)] for n in self.decisions for k in MODULES]
        first = next(iter(self.decisions.values())).attn.keep
        tokens = first.numel() if self.token_mask is None else int(self.token_mask.sum())
        return torch.tensor(each, device=first.device).repeat_interleave(tokens)


@dataclass
class Trace:
    """Every forward that ran while `record_routing` was open.

    Attributes:
        steps: one entry a forward, oldest first.
    """

    steps: list[Step] = field(default_factory=list)

    def keep_counts(self) -> tuple[dict[Site, int], int]:
        """How many real tokens each site ran, and how many real tokens there were."""
        kept: dict[Site, int] = {}
        tokens = 0
        for step in self.steps:
            for layer, decision in step.decisions.items():
                for module in MODULES:
                    keep = getattr(decision, module).keep
                    real = keep if step.token_mask is None else keep & step.token_mask
                    site = Site(layer, module)
                    kept[site] = kept.get(site, 0) + int(real.sum())
            first = next(iter(step.decisions.values())).attn.keep
            tokens += first.numel() if step.token_mask is None else int(step.token_mask.sum())
        return kept, tokens

    def keep_ratios(self) -> dict[Site, float]:
        """Share of real tokens that each site ran."""
        kept, tokens = self.keep_counts()
        return {site: count / max(1, tokens) for site, count in sorted(kept.items())}

    def sparsity(self, module: Module | None = None) -> float:
        """Share of skipped decisions over real tokens, of all modules or of one kind."""
        ratios = [r for site, r in self.keep_ratios().items() if module in (None, site.module)]
        return 1 - sum(ratios) / len(ratios) if ratios else 0.0

    def margins(self) -> Tensor:
        """The margins of all real tokens and sites, flat."""
        return torch.cat([step.margins() for step in self.steps])

    def margin_weights(self, weights: Mapping[Site, float]) -> Tensor:
        """What skipping each of the margins saves, flat and in their order.

        Args:
            weights: what each site saves where every token skips it.
        """
        each = torch.cat([step.margin_weights(weights) for step in self.steps])
        return each * (len(weights) / len(each))
