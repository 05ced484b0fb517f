"""One ranking by how little each unit changes the residual stream: ShortGPT and LLM-Drop.

ShortGPT (arXiv 2403.03853, github.com/icip-cas/ShortGPT) removes layers. A layer's block influence
is 1 minus the mean cosine of its input and output. We differ from the authors' code in one place:
it reads transformers' `hidden_states`, whose last entry is after the final norm, so its influence
of the last layer includes the norm; ours is of the layer alone, as in the paper's formula. The
authors calibrate on PG-19 in windows of 256 tokens, we on the given blocks.

LLM-Drop (arXiv 2406.15786, github.com/CASE-Lab-UMD/LLM-Drop) removes modules: its one-shot "layer
drop", which drops the norm as well. A module's similarity is the mean cosine of the stream before
and after its output is added; both kinds are ranked in one list. The authors' code supports
pre-norm families only; here a module's output is taken after any norm or scale that follows it,
and in parallel families the input of an MLP is that of the layer. The authors calibrate on 256
rows of 2,048 tokens of C4, we on the given blocks.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from skipgpt.evaluation.perplexity import total_loss
from skipgpt.evaluation.windows import batches
from skipgpt.model.residual_stream import watching_stream
from skipgpt.removal.units import Unit
from skipgpt.system.progress import OnStep


def influences(
    model: nn.Module, blocks: Tensor, *, batch_size: int = 8, on_step: OnStep | None = None
) -> dict[Unit, float]:
    """Score every layer and module by 1 minus its mean cosine over all tokens of blocks [N, T].

    Arguments and errors: `skipgpt.removal.search.Method`.
    """
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
    return {unit: 1 - float(total) / blocks.numel() for unit, total in totals.items()}
