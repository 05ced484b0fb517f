"""BlockPruner: greedy removal of single modules, the same ones for every token.

Source: arXiv 2406.10594, github.com/MrGGLS/BlockPruner. Each round removes the attention or MLP
whose removal leaves the lowest perplexity. It is the strongest simple baseline, and routers with
constant margins can express its result, so training of routers may also start from it.

It differs from the authors' code in the text only: they calibrate on Alpaca, we on the given
blocks. Their option to search among modules of low block influence only is left out.
"""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.removal.announced import announced
from skipgpt.removal.search import one_by_one, trials_of
from skipgpt.removal.suffix_loss import SuffixLoss
from skipgpt.removal.units import Unit, units_of
from skipgpt.system.progress import OnStep


def blockpruner(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> list[Unit]:
    """Remove one module after another, each time the one whose removal costs the least loss.

    Arguments, result, errors and example: `skipgpt.removal.search.Method`.
    """
    modules = units_of(model, "modules")
    loss = SuffixLoss(model, blocks, batch_size=batch_size)
    timed = announced(loss, "blockpruner", trials_of(len(modules), removals))
    return one_by_one(timed, modules, removals, on_step=on_step)
