"""What skipping a module saves, in the unit that a budget is told in.

modules   every module counts the same (paper)
flops     FLOPs of a token that skipping really saves: keys and values are still computed under
          `kv="dense"`, and the stand-in runs instead; language-model head included in the whole
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from skipgpt.config import Budget
from skipgpt.cost.counts import deciding_parameters, layer_costs, parameters_of
from skipgpt.cost.sparsity import flops_per_token
from skipgpt.errors import ConfigError
from skipgpt.model.surgery import routed_layers, routers, stand_ins
from skipgpt.routing.decision import Site


@dataclass(frozen=True)
class Savings:
    """Shares of a dense forward, in one unit.

    Attributes:
        unit: in which cost is counted.
        by_site: what a site saves where every token skips it; negative where its stand-in costs
            more than the module.
        overhead: what routing adds, whatever is skipped.
    """

    unit: Budget
    by_site: Mapping[Site, float]
    overhead: float = 0.0

    def share(self, keep: Mapping[Site, float]) -> float:
        """The share of the dense cost that is saved at these keep ratios.

        Example:
            >>> one, two = Site(0, "attn"), Site(0, "mlp")
            >>> Savings("flops", {one: 0.2, two: 0.6}, 0.01).share({one: 0.5, two: 1.0})
            0.09
        """
        return sum(s * (1 - keep[site]) for site, s in self.by_site.items()) - self.overhead


def savings(
    model: nn.Module, unit: Budget, context: float, *, removed: bool = False
) -> Savings:
    """What each site of a model saves.

    Args:
        model: with routers.
        unit: `modules` or `flops`.
        context: mean number of tokens that a token attends to.
        removed: count a static removal: attention takes its keys and values along, and no router
            runs; stand-ins still do.

    Raises:
        ConfigError: the unit is unknown.
    """
    sites = list(routers(model))
    if unit == "modules":
        return Savings(unit, dict.fromkeys(sites, 1 / len(sites)))
    if unit != "flops":
        raise ConfigError("counting a budget", got=repr(unit), expected="modules or flops")
    dense = flops_per_token(model, context)
    saved: dict[Site, float] = {}
    for layer in routed_layers(model):
        cost = layer_costs(layer)
        keys = cost.kv if removed or layer.routing.config.kv == "skip" else 0
        core = 4 * cost.core_width * cost.attended(0, 2 * context - 1)
        saved[Site(layer.index, "attn")] = 2 * (cost.qo + keys) + core
        saved[Site(layer.index, "mlp")] = 2 * cost.mlp
    for site, stand_in in stand_ins(model).items():
        saved[site] -= 2 * parameters_of(stand_in)
    by_site = {site: saved[site] / dense for site in sites}
    overhead = 0.0 if removed else 2 * deciding_parameters(model) / dense
    return Savings(unit, by_site, overhead)
