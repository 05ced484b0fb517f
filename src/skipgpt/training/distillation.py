"""Distillation: the loss that keeps a routed model close to its dense base.

The teacher is the same model with routers and LoRA off, so it costs a forward but no memory.
Language-model loss also teaches the text itself; KL to the dense model teaches routes alone.

Shapes: B batch, T tokens, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, pad
from transformers.loss.loss_utils import ForCausalLMLoss

from skipgpt.evaluation.closeness import as_dense

ROWS = 1024
"""Tokens whose distributions are compared at once, to bound memory."""

NO_LABEL = -100
"""The label that transformers' losses ignore."""


@torch.no_grad()
def dense_logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Return logits [B, T, V] of the dense base model: routers off, LoRA off, no dropout.

    PEFT may wrap the model, DDP and the like not. Labels among its inputs are left out.
    """
    given = {name: value for name, value in inputs.items() if name != "labels"}
    with as_dense(model):
        logits: Tensor = model(**given).logits
    return logits


def kl_to_dense(dense: Tensor, routed: Tensor, labels: Tensor) -> Tensor:
    """Return KL(dense || routed) in nats, summed over tokens whose next token has a label.

    Args:
        dense: [B, T, V] logits of the teacher.
        routed: [B, T, V] logits of the student, with gradient.
        labels: [B, T]; they say which tokens count, as in the language-model loss.

    Example:
        >>> same = torch.randn(1, 7, 11)
        >>> kl_to_dense(same, same, torch.ones(1, 7, dtype=torch.long))
        tensor(0.)
    """
    following = pad(labels, (0, 1), value=NO_LABEL)[:, 1:].flatten()
    rows = (following != NO_LABEL).nonzero().squeeze(-1)
    total = routed.new_zeros((), dtype=torch.float32)
    for some in rows.split(ROWS):  # type: ignore[no-untyped-call]
        target = log_softmax(dense.flatten(0, 1)[some].float(), -1)
        found = log_softmax(routed.flatten(0, 1)[some].float(), -1)
        total = total + kl_div(found, target, reduction="sum", log_target=True)
    return total


def distilled_loss(
    dense: Tensor, routed: Tensor, labels: Tensor, share: float, items: Tensor | int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix KL to the dense model with the loss on text, in nats per token.

    Args:
        dense: [B, T, V] logits of the teacher.
        routed: [B, T, V] logits of the student, with gradient.
        labels: [B, T].
        share: share of the KL divergence in the loss; at 1 the text gives no gradient.
        items: tokens with a label in the whole step; those of this micro-batch if None.

    Returns:
        The mixed loss, the loss on text and the KL divergence; scalars.
    """
    if items is None:
        items = (labels[:, 1:] != NO_LABEL).sum()
    divergence = kl_to_dense(dense, routed, labels) / items
    text = ForCausalLMLoss(
        routed.detach() if share == 1 else routed,
        labels,
        routed.shape[-1],
        num_items_in_batch=items,
    )
    return share * divergence + (1 - share) * text, text, divergence
