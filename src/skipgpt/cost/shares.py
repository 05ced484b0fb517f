"""What skipping saves, as shares of the cost of a dense forward in the unit of a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skipgpt.config import BUDGET_NOUNS, Budget
from skipgpt.errors import ConfigError
from skipgpt.routing.decision import Site


@dataclass(frozen=True)
class Savings:
    """What skipping saves, as shares of the cost of a dense forward in one unit.

    Attributes:
        unit: in which cost is counted.
        by_site: what a site saves where every token skips it; negative where its stand-in costs
            more than the module.
        overhead: what routing adds, whatever is skipped.
        pairs: what a site costs per pair of a query and a key that both have to be kept: the
            attention core under `kv="skip"`, which falls with the square of the keep ratio.
    """

    unit: Budget
    by_site: Mapping[Site, float]
    overhead: float = 0.0
    pairs: Mapping[Site, float] = field(default_factory=dict)

    def share(self, keep: Mapping[Site, float]) -> float:
        """The share of the dense cost that is saved at these keep ratios.

        Example:
            >>> one, two = Site(0, "attn"), Site(0, "mlp")
            >>> Savings("flops", {one: 0.2, two: 0.6}, 0.01).share({one: 0.5, two: 1.0})
            0.09
        """
        pairs = sum(s * keep[site] * (1 - keep[site]) for site, s in self.pairs.items())
        return self.in_proportion(keep) + pairs - self.overhead

    def in_proportion(self, keep: Mapping[Site, float]) -> float:
        """The sum of what sites save, each times the share of tokens that skip it."""
        return sum(s * (1 - keep[site]) for site, s in self.by_site.items())

    @property
    def largest(self) -> float:
        """The share that is saved where every module that saves anything is skipped."""
        return self.share({site: float(saved <= 0) for site, saved in self.by_site.items()})

    def reaches(self, target: float) -> bool:
        """Whether skipping can save this share at all."""
        return target <= max(0.0, self.largest) + 1e-9  # sums round

    def check_reach(self, target: float) -> None:
        """Raise a ConfigError, with the largest share, unless skipping can save this share."""
        if not self.reaches(target):
            noun = BUDGET_NOUNS[self.unit]
            raise ConfigError(
                "planning the budget",
                got=f"a target of {target:.1%} of {noun}",
                expected=f"at most {max(0.0, self.largest):.1%}: so much is saved where every "
                "module is skipped that saves more than its stand-in costs",
                todo="lower the target, lower router.stand_in, or count another budget, as in "
                "--budget modules",
            )

    def share_of_sites(self, target: float) -> float:
        """The share of sites to skip to save a share of the cost, if sites are alike."""
        if self.unit == "modules":
            return target
        total = sum(max(0.0, saved) for saved in self.by_site.values())
        return min(1.0, (target + self.overhead) / total) if total else 1.0
