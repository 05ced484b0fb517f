"""Greedy removal by the remaining loss, the same for every token: BlockPruner and SLEB.

Each round tries every unit on top of those already removed, and removes the one whose removal
leaves the lowest perplexity. We calibrate on the given blocks, in place of the authors' texts.

BlockPruner (arXiv 2406.10594, github.com/MrGGLS/BlockPruner) removes single modules. The authors
calibrate on Alpaca; their option to search among modules of low block influence only is left out.

SLEB (arXiv 2402.09025, github.com/jiwonsong-dev/SLEB) removes whole layers. As there, the first and
the last layer are never candidates; we remove these two when nothing else is left, so that every
budget can be met. The authors calibrate on 128 rows of WikiText-2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from skipgpt.removal.search import one_by_one
from skipgpt.removal.suffix_loss import SuffixLoss
from skipgpt.removal.units import Kind, Unit, units_of
from skipgpt.system.progress import OnStep


def greedy(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: OnStep | None = None,
    kind: Kind,
    enough: Callable[[list[Unit]], bool] | None = None,
) -> list[Unit]:
    """Remove one unit after another, each time the one whose removal costs the least loss.

    `kind` says what a unit is; with `enough` the search ends early, once that says so of what was
    removed. Other arguments, result, errors and example: `skipgpt.removal.search.Method`.
    """
    units = units_of(model, kind)
    protected = {units[0], units[-1]} if kind == "layers" else ()
    loss = SuffixLoss(model, blocks, batch_size=batch_size)
    return one_by_one(loss, units, removals, protected=protected, enough=enough, on_step=on_step)


blockpruner = partial(greedy, kind="modules")
sleb = partial(greedy, kind="layers")
