"""Loss on held-out text, with the sparsity of the same run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skipgpt.cost import SENSES, no_sparsities, sparsities
from skipgpt.evaluation.closeness import Closeness, ClosenessSum
from skipgpt.evaluation.windows import Span, batches, mean_context
from skipgpt.model.loading.limits import check_rows
from skipgpt.model.state import count_routing
from skipgpt.model.trace import KeepCounts
from skipgpt.routing.decision import MODULES
from skipgpt.system.mode import in_mode
from skipgpt.system.progress import advancing

Rows = Tensor | Sequence[Tensor]
"""Token ids [N, T], or rows that may differ in length."""

OnBatch = Callable[[Tensor, Tensor, Tensor], None]
"""Called per batch with token ids [B, T], logits [B, T, V] and losses [B, T - 1]."""


@dataclass(frozen=True)
class Perplexity:
    """Loss over a set of blocks.

    Attributes:
        nll_per_token: mean negative log-likelihood, nats per predicted token.
        perplexity: its exponential.
        tokens: how many tokens were predicted.
        sparsity: measured in this run: module, attn, mlp, params, flops and, where the machine was
            profiled, time; all 0 in `dense` execution.
        keep_rates: by layer, of the same run: the share of tokens that ran its `attn` and its
            `mlp`; their mean is 1 - module sparsity. Empty in `dense` execution.
        closeness: to the dense model, over the same predicted tokens; None if not measured.
    """

    nll_per_token: float
    perplexity: float
    tokens: int
    sparsity: dict[str, float]
    keep_rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    closeness: Closeness | None = None

    @classmethod
    def of(
        cls,
        nll_per_token: float,
        tokens: int,
        sparsity: dict[str, float] | None = None,
        keep_rates: dict[str, tuple[float, ...]] | None = None,
        closeness: Closeness | None = None,
    ) -> Perplexity:
        """Build from a mean loss; without a sparsity, nothing was skipped."""
        shares = sparsity or {each: 0.0 for each in SENSES if each != "time"}
        likely = math.exp(min(nll_per_token, 700.0))
        return cls(nll_per_token, likely, tokens, shares, keep_rates or {}, closeness)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {value:.1%}" for name, value in self.sparsity.items())
        return (
            f"perplexity {self.perplexity:.3f}, {self.nll_per_token:.4f} nats per token over "
            f"{self.tokens:,} tokens" + (f"; sparsity: {shares}" if shares else "")
        )


@torch.no_grad()
def perplexity(
    model: nn.Module, blocks: Rows, *, batch_size: int = 8, closeness_to: nn.Module | None = None
) -> Perplexity:
    """Measure the loss of a routed model over blocks, each without context before it.

    Args:
        model: with routers, in whatever execution and sparsity is set.
        blocks: [N, T] token ids, or rows that may differ in length.
        batch_size: blocks per forward.
        closeness_to: the dense model that closeness is measured to, with one more forward per
            batch; `model` itself will do, with routers and LoRA switched off. None measures no
            closeness.

    Raises:
        ConfigError: a block is longer than the model's context.
        DataError: a token has no embedding.

    Example:
        with skipgpt.execution(model, "dense"):
            dense = skipgpt.perplexity(model, blocks)
        print(skipgpt.perplexity(model, blocks, closeness_to=model).closeness)
    """
    check_rows("measuring perplexity", model, None, *blocks)
    spans = [Span(row) for row in blocks]
    return perplexity_of_spans(model, spans, batch_size=batch_size, closeness_to=closeness_to)


@torch.no_grad()
def perplexity_of_spans(
    model: nn.Module,
    spans: Sequence[Span],
    *,
    batch_size: int = 8,
    closeness_to: nn.Module | None = None,
) -> Perplexity:
    """Measure loss over the scored tokens, and sparsity over all tokens read.

    Arguments are as for `perplexity`, but that spans say where scoring begins.

    Example:
        perplexity_of_spans(model, sliding_spans(ids, 1024, 512))
    """
    rows = [span.ids for span in spans]
    firsts = iter([span.first for span in spans])
    closeness = None if closeness_to is None else ClosenessSum(closeness_to)
    nll = 0.0

    def add(ids: Tensor, logits: Tensor, losses: Tensor) -> None:
        nonlocal nll
        here = list(islice(firsts, len(ids)))
        for row, first in zip(losses, here, strict=True):
            nll += row[first - 1 :].double().sum().item()
        if closeness:
            closeness.add(ids, logits, here)

    with count_routing(model) as counts:
        total_loss(model, rows, batch_size, add)
    tokens = sum(len(span.ids) - span.first for span in spans)
    return build_result(model, counts, nll, tokens, rows, closeness)


@torch.no_grad()
def total_loss(
    model: nn.Module, blocks: Rows, batch_size: int = 8, on_batch: OnBatch | None = None
) -> tuple[float, int]:
    """Return summed loss in nats and number of predicted tokens of blocks [N, T]."""
    device = next(model.parameters()).device
    nll, tokens, rows = 0.0, 0, 0
    phase = advancing("running the text", unit="row", total=len(blocks))
    with in_mode(model, training=False), phase as advance:
        for batch in batches(blocks, batch_size):
            ids = batch.to(device)
            logits = model(input_ids=ids, use_cache=False).logits
            predicted = logits[:, :-1].flatten(0, 1).float()
            losses = cross_entropy(predicted, ids[:, 1:].flatten(), reduction="none")
            nll += losses.double().sum().item()
            tokens += losses.numel()
            del predicted  # float32 logits of the whole batch
            if on_batch:
                on_batch(ids, logits, losses.view(len(ids), -1))
            rows += len(ids)
            advance(rows, len(blocks))
    return nll, tokens


def build_result(
    model: nn.Module,
    counts: KeepCounts,
    nll: float,
    tokens: int,
    rows: Rows,
    closeness: ClosenessSum | None = None,
) -> Perplexity:
    """Return the result of a run over rows of a text.

    Its loss `nll` is a sum in nats over the predicted tokens. Dense execution makes no decisions,
    so it counts nothing.
    """
    close = closeness.mean() if closeness else None
    if not counts.tokens:
        return Perplexity.of(nll / tokens, tokens, no_sparsities(model), closeness=close)
    ratios = counts.keep_ratios()
    rates: dict[str, tuple[float, ...]] = {
        kind: tuple(r for site, r in ratios.items() if site.module == kind) for kind in MODULES
    }
    shares = sparsities(model, ratios, mean_context(rows))
    return Perplexity.of(nll / tokens, tokens, shares, rates, close)
