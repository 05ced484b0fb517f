"""ShortGPT: one ranking of layers by how little they change the residual stream.

Source: arXiv 2403.03853, github.com/icip-cas/ShortGPT. A layer's block influence is 1 minus the
mean cosine of its input and output. We differ from the authors' code in one place: it reads
transformers' `hidden_states`, whose last entry is after the final norm, so its influence of the
last layer includes the norm; ours is of the layer alone, as in the paper's formula. The authors
calibrate on PG-19 in windows of 256 tokens, we on the given blocks.
"""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.baselines.similarity import similarities
from skipgpt.removal.search import one_shot
from skipgpt.removal.units import Unit, units_of
from skipgpt.system.progress import OnStep


def shortgpt(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> list[Unit]:
    """Remove the layers of least block influence.

    Arguments, result, errors and example: `skipgpt.removal.search.Method`.
    """
    cosines = similarities(model, blocks, batch_size=batch_size, on_step=on_step)
    return one_shot({unit: 1 - cosines[unit] for unit in units_of(model, "layers")}, removals)
