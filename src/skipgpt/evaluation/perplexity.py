"""Loss on held-out text, with the sparsity of that very run beside it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skipgpt.cost import sparsities
from skipgpt.model.trace import Trace, record_routing


@dataclass(frozen=True)
class Perplexity:
    """Loss over a set of blocks.

    Attributes:
        nll_per_token: mean negative log-likelihood, nats a predicted token.
        perplexity: its exponential.
        tokens: how many tokens were predicted.
        sparsity: measured in this run: module, attn, mlp, params, flops; all 0 in `dense`
            execution.
    """

    nll_per_token: float
    perplexity: float
    tokens: int
    sparsity: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {value:.1%}" for name, value in self.sparsity.items())
        return (
            f"perplexity {self.perplexity:.3f}, {self.nll_per_token:.4f} nats a token over "
            f"{self.tokens:,} tokens" + (f"; sparsity: {shares}" if shares else "")
        )


@torch.no_grad()
def perplexity(model: nn.Module, blocks: Tensor, *, batch_size: int = 8) -> Perplexity:
    """Loss of a routed model over blocks, each predicted from nothing before it.

    Args:
        model: with routers, in whatever execution and sparsity is set.
        blocks: [N, T] token ids.
        batch_size: blocks a forward.

    Example:
        with skipgpt.execution(model, "dense"):
            dense = skipgpt.perplexity(model, blocks)
    """
    with record_routing(model) as trace:
        nll, tokens = total_loss(model, blocks, batch_size)
    mean = nll / tokens
    measured = _measured(model, trace, context=(blocks.shape[1] + 1) / 2)
    return Perplexity(mean, math.exp(min(mean, 700.0)), tokens, measured)


@torch.no_grad()
def total_loss(model: nn.Module, blocks: Tensor, batch_size: int = 8) -> tuple[float, int]:
    """Summed loss in nats and number of predicted tokens of blocks [N, T]."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nll = 0.0
    for start in range(0, len(blocks), batch_size):
        ids = blocks[start : start + batch_size].to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        nll += cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
        ).item()
    model.train(was_training)
    return nll, blocks.shape[0] * (blocks.shape[1] - 1)


def _measured(model: nn.Module, trace: Trace, context: float) -> dict[str, float]:
    if not trace.steps:  # dense execution makes no decisions
        return dict.fromkeys(("module", "attn", "mlp", "params", "flops"), 0.0)
    return sparsities(model, trace.keep_ratios(), context)
