"""Computes logits only where there is a label.

Padding, prompts that are not to be learned and the last token of each row have no label. The head
is the largest matrix product of a small model, and its logits the largest tensor of a training
step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NO_LABEL = -100
"""The label that transformers' losses ignore."""


@contextmanager
def labelled_rows(model: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Show the model's head, inside the block, only tokens whose next token is a label.

    Losses and gradients are those of all tokens: the rest adds nothing to either. What a family
    does to its logits (scales, caps) is unaffected.

    Args:
        model: a causal language model, with or without an adapter.
        inputs: inputs of its forward; `labels` [B, T].

    Yields:
        The inputs to give to the model. Its logits then are [1, N, V], N being the number of
        labelled tokens plus one.

    Example:
        with labelled_rows(model, inputs) as given:
            loss = model(**given).loss
    """
    labels, head = inputs.get("labels"), model.get_output_embeddings()
    if labels is None or head is None:
        yield inputs
        return
    following = nn.functional.pad(labels, (0, 1), value=NO_LABEL)[:, 1:].flatten()
    rows = (following != NO_LABEL).nonzero().squeeze(-1)
    if len(rows) + len(labels) >= labels.numel():
        # Packed text: each row lacks the label of its last token and no other.
        yield inputs
        return
    # The loss compares each row of logits with the next label, so one more row ends them.
    taken = torch.cat([rows, rows.new_zeros(1)])
    shorter = torch.cat([following.new_full((1,), NO_LABEL), following[rows]])[None]

    def take(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0].flatten(0, 1).index_select(0, taken)[None], *given[1:])

    hook = head.register_forward_pre_hook(take)
    try:
        yield inputs | {"labels": shorter}
    finally:
        hook.remove()
