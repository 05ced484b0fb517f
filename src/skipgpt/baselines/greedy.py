"""Greedy static removal: which modules a model can do without, the same ones for every token.

The strongest simple rival (BlockPruner does the same by perplexity) and the solution that a
router with constant margins can copy, so it is also where training of routers may start.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model.surgery import routers
from skipgpt.model.trace import deciding, execution
from skipgpt.routing.decision import Forced, Site


def greedy_order(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Site]:
    """Remove one module after another, each time the one whose removal costs the least loss.

    Args:
        model: with routers; what they say does not matter.
        blocks: [N, T] token ids that the loss is measured on.
        removals: how many modules to remove.
        batch_size: blocks a forward.
        on_step: called with trials done and trials in all.

    Returns:
        The removed sites, first removed first.
    """
    left = list(routers(model))
    removed: list[Site] = []
    trials = sum(len(left) - n for n in range(removals))
    done = 0
    for _ in range(removals):
        losses = {}
        for site in left:
            losses[site] = static_loss(model, blocks, [*removed, site], batch_size=batch_size)
            done += 1
            if on_step:
                on_step(done, trials)
        best = min(losses, key=lambda site: losses[site])
        left.remove(best)
        removed.append(best)
    return removed


def static_loss(
    model: nn.Module, blocks: Tensor, removed: list[Site], *, batch_size: int = 8
) -> float:
    """Nats a token with some sites removed for every token."""
    with deciding(model, Forced.without(removed)), execution(model, "sparse"):
        nll, tokens = total_loss(model, blocks, batch_size)
    return nll / tokens


def static_margins(model: nn.Module, removed: list[Site]) -> dict[Site, float]:
    """Constant margins from -1 to +1 whose thresholds remove sites in the given order.

    The first removed gets -1, the next ones more; all that were not removed share +1.
    """
    rank = {site: -1 + n / len(removed) for n, site in enumerate(removed)}
    return {site: rank.get(site, 1.0) for site in routers(model)}
