"""Mixture-of-Depths: the top-k tokens of each layer run, instead of those above a threshold.

Sources: MoD, arXiv 2404.02258 (whole layers); MoD-D, the SkipGPT authors' variant with a router for
each module. As in their code the first and the last layer stay dense, keys and values are computed
for all tokens, and the raw score scales a module's output. The rank of a token depends on later
ones, so the selection is not causal; `AboveThresholds` is the causal variant. Unlike both sources,
routers start at score 1, since the frozen base expects unscaled outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipgpt.cost import Savings
from skipgpt.errors import ConfigError
from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import routed_layers, routers
from skipgpt.routing.decision import ModuleDecision, Site


@dataclass(frozen=True)
class TopK:
    """Run the share of tokens in each row whose margins are highest; their margin is the gate.

    Attributes:
        sparsity: share of tokens that skip, at every site that is not dense.
        dense: layers that skip nothing.
    """

    sparsity: float
    dense: frozenset[int] = frozenset()

    def skips(self, site: Site) -> bool:
        """Whether a token may skip there."""
        return site.layer not in self.dense

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module; margins are [B, T]."""
        if not self.skips(site):
            return ModuleDecision.hard(torch.ones_like(margin, dtype=torch.bool), margin)
        count = max(1, round((1 - self.sparsity) * margin.shape[1]))
        best = margin.topk(count, dim=1).indices
        keep = torch.zeros_like(margin, dtype=torch.bool).scatter(1, best, True)
        return ModuleDecision(keep, margin * keep, margin)


@dataclass(frozen=True)
class AboveThresholds:
    """Run the tokens whose margin is above their site's threshold; their margin is the gate.

    Attributes:
        values: by site; sites without one skip nothing.
    """

    values: Mapping[Site, float]

    def skips(self, site: Site) -> bool:
        """Whether a token may skip there."""
        return site in self.values

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module; margins are [B, T]."""
        if not self.skips(site):
            return ModuleDecision.hard(torch.ones_like(margin, dtype=torch.bool), margin)
        keep = margin > self.values[site]
        return ModuleDecision(keep, margin * keep, margin)


def top_k_rule(model: nn.Module, sparsity: float, saved: Savings | None = None) -> TopK:
    """Return the rule that reaches a sparsity over all layers, the first and last staying dense.

    The share is of the savings; of modules, if they are not given. Raises ConfigError if the other
    layers would have to skip more than everything.
    """
    layers = len(routed_layers(model))
    dense = frozenset({0, layers - 1}) if layers > 2 else frozenset[int]()
    free = (layers - len(dense)) / layers
    if saved is not None:
        free = sum(share for site, share in saved.by_site.items() if site.layer not in dense)
        sparsity += saved.overhead
    if sparsity > free + 1e-9:
        raise ConfigError(
            "choosing the best tokens of each layer",
            got=f"a sparsity of {sparsity:g} over {layers} layers",
            expected=f"at most {free:.2f}, as the first and last one stay dense",
        )
    return TopK(min(1.0, sparsity / free), dense)


@torch.no_grad()
def layer_thresholds(
    model: nn.Module, blocks: Tensor, rule: TopK, rounds: int = 4
) -> AboveThresholds:
    """Return thresholds that keep as many tokens of blocks [N, T] at each site as the ranks do.

    Tokens above a threshold are not the top of each row, which changes the input of later layers;
    so thresholds are set again on the states that they themselves lead to.
    """
    found = _quantiles(model, blocks, rule, rule.sparsity)
    for _ in range(rounds - 1):
        found = _quantiles(model, blocks, found, rule.sparsity)
    return found


def _quantiles(
    model: nn.Module, blocks: Tensor, rule: TopK | AboveThresholds, sparsity: float
) -> AboveThresholds:
    """Return the margin below which this share of tokens lies, for each site that may skip."""
    with execution(model, "gated"), use_rule(model, rule), record_routing(model) as trace:
        total_loss(model, blocks)
    values = {}
    for site in filter(rule.skips, routers(model)):
        seen = [getattr(step.decisions[site.layer], site.module).margin for step in trace.steps]
        margins = torch.cat([margin.flatten() for margin in seen])
        values[site] = margins.quantile(sparsity).item()
    return AboveThresholds(values)
