"""How much each unit changes the residual stream: the cosine of its input and output."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from skipgpt.evaluation.perplexity import total_loss
from skipgpt.evaluation.windows import batches
from skipgpt.model.residual_stream import watching_stream
from skipgpt.removal.units import Unit
from skipgpt.system.progress import OnStep


def similarities(
    model: nn.Module, blocks: Tensor, *, batch_size: int = 8, on_step: OnStep | None = None
) -> dict[Unit, float]:
    """Return, for every module and layer, the mean cosine over all tokens of blocks [N, T]."""
    totals: dict[Unit, Tensor] = {}

    def count(unit: Unit, before: Tensor, after: Tensor) -> None:
        total = cosine_similarity(before.float(), after.float(), dim=-1).sum()
        totals[unit] = totals[unit] + total if unit in totals else total

    parts = list(batches(blocks, batch_size))
    with watching_stream(model, count):
        for done, batch in enumerate(parts, 1):
            total_loss(model, batch, batch_size)
            if on_step:
                on_step(done, len(parts))
    return {unit: float(total) / blocks.numel() for unit, total in totals.items()}
