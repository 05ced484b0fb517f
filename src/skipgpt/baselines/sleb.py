"""SLEB: greedy removal of whole layers by the remaining loss.

Source: arXiv 2402.09025, github.com/jiwonsong-dev/SLEB. As there, each round tries every layer on
top of those already removed, and the first and the last layer are never candidates. We remove these
two when nothing else is left, so that every budget can be met. The authors calibrate on 128 rows of
WikiText-2, we on the given blocks.
"""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.removal.announced import announced
from skipgpt.removal.search import one_by_one, trials_of
from skipgpt.removal.suffix_loss import SuffixLoss
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
