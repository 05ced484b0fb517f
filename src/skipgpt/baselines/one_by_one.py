"""SLEB and BlockPruner: greedy removal of units by the remaining loss, the same for every token.

SLEB (arXiv 2402.09025, github.com/jiwonsong-dev/SLEB) removes whole layers. As there, each round
tries every layer on top of those already removed, and the first and the last layer are never
candidates. We remove these two when nothing else is left, so that every budget can be met. The
authors calibrate on 128 rows of WikiText-2, we on the given blocks.

BlockPruner (arXiv 2406.10594, github.com/MrGGLS/BlockPruner) removes single modules: each round the
attention or MLP whose removal leaves the lowest perplexity. It is the strongest simple baseline,
and routers with constant margins can express its result, so training of routers may also start from
it. It differs from the authors' code in the text only: they calibrate on Alpaca, we on the given
blocks. Their option to search among modules of low block influence only is left out.
"""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.removal.search import one_by_one, trials_of
from skipgpt.removal.suffix_loss import SuffixLoss, announced
from skipgpt.removal.units import Unit, units_of
from skipgpt.system.progress import OnStep


def sleb(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> list[Unit]:
    """Remove one layer after another, each time the one whose removal costs the least loss.

    Arguments, result, errors and example: `skipgpt.removal.search.Method`.
    """
    layers = units_of(model, "layers")
    protected = {layers[0], layers[-1]}
    trials = trials_of(len(layers), removals, protected=len(protected))
    loss = announced(SuffixLoss(model, blocks, batch_size=batch_size), "sleb", trials)
    return one_by_one(loss, layers, removals, protected=protected, on_step=on_step)


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
