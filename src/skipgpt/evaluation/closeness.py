"""How close a routed model is to its dense model: KL divergence and agreement of the top token.

Shapes: B rows, T tokens per row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from skipgpt.model.lora import without_lora
from skipgpt.model.state import execution, routing_state
from skipgpt.model.surgery import routed_layers

DenseModel = Literal["base", "all kept"]
"""The base model without LoRA; or, where LoRA is part of the weights, everything kept."""

CHUNK_ELEMENTS = 2**25
"""Logits that are converted to float32 at once: 128 MiB per tensor."""


@dataclass(frozen=True)
class Closeness:
    """How close the next-token distributions of a model are to those of a dense model.

    Attributes:
        kl_per_token: mean KL(dense || routed) over the predicted tokens, in nats per token.
        agreement: share of the predicted tokens at which both models have the same most likely
            token (top-1). It is also the acceptance rate of a lossless greedy draft.
        dense: what the dense model was: `base`, or `all kept` where LoRA is part of the weights.
    """

    kl_per_token: float
    agreement: float
    dense: DenseModel = "base"

    def mixed(self, other: Closeness, share: float) -> Closeness:
        """Return the closeness if this share of the sequences runs in the other model.

        Example:
            >>> Closeness(0.5, 0.5).mixed(Closeness(1.0, 0.25), 0.5)
            Closeness(kl_per_token=0.75, agreement=0.375, dense='base')
        """
        return Closeness(
            self.kl_per_token + (other.kl_per_token - self.kl_per_token) * share,
            self.agreement + (other.agreement - self.agreement) * share,
            self.dense,
        )

    def __str__(self) -> str:
        which = "dense" if self.dense == "base" else "everything kept"
        return (
            f"KL to {which} {self.kl_per_token:.4f} nats per token, "
            f"top-1 agreement {self.agreement:.1%}"
        )


IDENTICAL = Closeness(0.0, 1.0)
"""The closeness of the dense base model to itself."""


class ClosenessSum:
    """Adds closeness up, batch by batch, with one forward of the dense model per batch.

    Args:
        model: the dense model: any causal language model. Its routers and its LoRA adapter, if it
            has them, are switched off for each forward, so the model under test itself will do.

    Example:
        closeness = ClosenessSum(model)
        closeness.add(ids, model(input_ids=ids, use_cache=False).logits)
        print(closeness.mean())
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.kl, self.agreed, self.tokens = 0.0, 0, 0

    @torch.no_grad()
    def add(self, ids: Tensor, logits: Tensor, firsts: Sequence[int] | None = None) -> None:
        """Compare one batch: ids [B, T], and logits [B, T, V] of the model under test.

        The first scored tokens of each row are `firsts` [B]; 1 if None.
        """
        with as_dense(self.model):
            dense = self.model(input_ids=ids, use_cache=False).logits
        for row, first in enumerate(firsts or [1] * len(ids)):
            scored = slice(first - 1, -1)  # the logits that predict tokens `first` to T - 1
            self._add_tokens(dense[row, scored], logits[row, scored])

    def _add_tokens(self, dense: Tensor, routed: Tensor) -> None:
        """Compare logits [T, V] of both models, in chunks of tokens."""
        size = max(1, CHUNK_ELEMENTS // dense.shape[-1])
        for start in range(0, len(dense), size):
            wanted, found = dense[start : start + size], routed[start : start + size]
            p, q = (each.float().log_softmax(-1) for each in (wanted, found))
            divergence = kl_div(q, p, reduction="none", log_target=True)
            self.kl += divergence.sum(dtype=torch.float64).item()
            self.agreed += int((wanted.argmax(-1) == found.argmax(-1)).sum())
            self.tokens += len(wanted)

    def mean(self) -> Closeness:
        """The means over all tokens compared so far."""
        kl = max(self.kl / self.tokens, 0.0)  # rounding may go below zero
        holds_lora = bool(routed_layers(self.model)) and routing_state(self.model).lora
        switchable = hasattr(self.model, "disable_adapter")
        dense: DenseModel = "all kept" if holds_lora and not switchable else "base"
        return Closeness(kl, self.agreed / self.tokens, dense)


@contextmanager
def as_dense(model: nn.Module) -> Iterator[None]:
    """Run a model as its dense model inside the block: no routers, no LoRA, evaluation mode."""
    was_training = model.training
    with ExitStack() as stack:
        if routed_layers(model):
            stack.enter_context(execution(model, "dense"))
        stack.enter_context(without_lora(model))
        if was_training:
            stack.callback(model.train)
            model.eval()
        yield
