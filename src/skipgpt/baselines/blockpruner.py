"""Greedy static removal: which modules a model can do without, the same ones for every token.

BlockPruner (arXiv 2406.10594, github.com/MrGGLS/BlockPruner): in each round the attention or MLP
goes whose removal leaves the lowest perplexity. It is the strongest simple rival, and the solution
that a router with constant margins can copy, so it is also where training of routers may start.

Differs from the authors' code in nothing but the text: they calibrate on Alpaca, we on the blocks
that we are given. Their option to search among modules of low block influence only is left out.
"""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.removal.announced import announced
from skipgpt.removal.search import OnStep, one_by_one, trials_of
from skipgpt.removal.suffix_loss import SuffixLoss
from skipgpt.removal.units import Unit, units_of


def blockpruner(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> list[Unit]:
    """Remove one module after another, each time the one whose removal costs the least loss.

    Args:
        model: with routers; what they say does not matter.
        blocks: [N, T] token ids that the loss is measured on.
        removals: how many modules to remove.
        batch_size: blocks a forward.
        on_step: called with trials done and trials in all.

    Returns:
        The removed modules as units of one site, first removed first.

    Raises:
        ConfigError: more removals than modules.

    Example:
        constant_routes(model, blockpruner(model, blocks, 8))
    """
    modules = units_of(model, "modules")
    loss = SuffixLoss(model, blocks, batch_size=batch_size)
    timed = announced(loss, "blockpruner", trials_of(len(modules), removals))
    return one_by_one(timed, modules, removals, on_step=on_step)
