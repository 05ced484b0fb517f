"""How much each unit changes the residual stream: the cosine of its input and output."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model.residual_stream import watching_stream
from skipgpt.removal.units import Unit
from skipgpt.system.progress import OnStep


def similarities(
    model: nn.Module, blocks: Tensor, *, batch_size: int = 8, on_step: OnStep | None = None
) -> dict[Unit, float]:
    """Return the mean cosine over all tokens of every module and every layer.

    Args:
        model: with routers, whose outputs are ignored.
        blocks: [N, T] token ids.
        batch_size: blocks per forward.
        on_step: called with batches done and batches in all.
    """
    totals: dict[Unit, Tensor] = {}

    def count(unit: Unit, before: Tensor, after: Tensor) -> None:
        total = cosine_similarity(before.float(), after.float(), dim=-1).sum()
        totals[unit] = totals[unit] + total if unit in totals else total

    batches = math.ceil(len(blocks) / batch_size)
    with watching_stream(model, count):
        for n in range(batches):
            total_loss(model, blocks[n * batch_size : (n + 1) * batch_size], batch_size)
            if on_step:
                on_step(n + 1, batches)
    return {unit: float(total) / blocks.numel() for unit, total in totals.items()}
