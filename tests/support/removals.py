"""The loss of a static removal, computed plainly."""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model.state import execution, use_rule
from skipgpt.routing.decision import Forced, Site


def static_loss(
    model: nn.Module, blocks: Tensor, removed: list[Site], *, batch_size: int = 8
) -> float:
    """Return nats per token over blocks [N, T] with some sites removed for every token."""
    with use_rule(model, Forced.without(removed)), execution(model, "sparse"):
        nll, tokens = total_loss(model, blocks, batch_size)
    return nll / tokens
