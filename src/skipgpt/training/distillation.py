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

from skipgpt.evaluation.closeness import as_dense

ROWS = 256
"""Tokens whose distributions are compared at once, to bound memory."""

BUFFERS = 6
"""Float32 buffers [ROWS, V] that the comparison holds at once."""

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


def distilled_loss(
    dense: Tensor, routed: Tensor, labels: Tensor, share: float, items: Tensor | int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix KL to the dense model with the loss on text, in nats per token.

    Tokens count whose next token has a label, as in the language-model loss.

    Args:
        dense: [B, T, V] logits of the teacher.
        routed: [B, T, V] logits of the student, with gradient.
        labels: [B, T].
        share: share of KL(dense || routed) in the loss; at 1 the text gives no gradient.
        items: tokens with a label in the whole step; those of this micro-batch if None.

    Returns:
        The mixed loss, the loss on text and the KL divergence; scalars, the first with gradient.

    Example:
        >>> same, labels = torch.randn(1, 7, 11), torch.ones(1, 7, dtype=torch.long)
        >>> distilled_loss(same, same, labels, 1.0)[2]
        tensor(0.)
    """
    following = pad(labels, (0, 1), value=NO_LABEL)[:, 1:].flatten()
    rows = (following != NO_LABEL).nonzero().squeeze(-1)
    given = (routed.flatten(0, 1), dense.flatten(0, 1), following[rows], rows)
    mixed, text, divergence = _Distilled.apply(*given, share)  # type: ignore[no-untyped-call]
    count = len(rows) if items is None else items
    return mixed / count, text / count, divergence / count


class _Distilled(torch.autograd.Function):
    """The sums of `distilled_loss` over some rows of the logits [N, V].

    With `p` of the teacher, `q` of the student and `y` the next token, the gradient at the logits
    of the student is q - share * p - (1 - share) * onehot(y). Autograd would keep log-probabilities
    of both models instead, each as large as the logits in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, routed: Tensor, dense: Tensor, following: Tensor, rows: Tensor, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        text, divergence = routed.new_zeros(2, dtype=torch.float32).unbind()
        slope = torch.zeros_like(routed)
        parts = zip(torch.split(rows, ROWS), torch.split(following, ROWS), strict=True)
        for some, token in parts:
            found = log_softmax(routed[some].float(), -1)
            target = log_softmax(dense[some].float(), -1)
            text -= found.gather(1, token[:, None]).sum()
            divergence += kl_div(found, target, reduction="sum", log_target=True)
            each = found.exp_().sub_(target.exp_(), alpha=share)
            each.scatter_add_(1, token[:, None], each.new_full((len(token), 1), share - 1))
            slope[some] = each.to(slope.dtype)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(text, divergence)
        return share * divergence + (1 - share) * text, text, divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * upstream, None, None, None, None
