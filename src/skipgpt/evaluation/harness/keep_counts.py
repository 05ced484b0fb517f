"""Counts what each request's tokens ran, so that a benchmark's sparsity is that of its own run.

Shapes: B rows of a forward, T tokens, M modules of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from skipgpt.cost import sparsities
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import Step, Trace
from skipgpt.routing.decision import MODULES, Site

RequestCounts = tuple[int, ...]
"""Counts over the real tokens of one request, or of many.

They stand in this order: the number of tokens; the sum over them of the tokens that each attended
to, itself included; then per module, by layer and attention before MLP, the tokens that ran it.
"""


def add_up(rans: Iterable[Sequence[int]]) -> RequestCounts | None:
    """Add up counts; None if there are none."""
    return tuple(sum(column) for column in zip(*rans, strict=True)) or None


def ran_by_row(
    trace: Trace, prompts: Sequence[int], decoded: Sequence[int] = ()
) -> list[RequestCounts]:
    """Count what each row of one batch ran, without padding.

    The trace is of one forward, or of one `generate`: a prefill of the prompts and single steps
    after it. `prompts` are tokens of each row without padding; `decoded` are those that were
    decoded and read again, so without a row's last token and the padding of finished rows.
    """
    decoded = decoded or [0] * len(prompts)
    kept = sum(_kept(step, n, decoded) for n, step in enumerate(trace.steps))
    if not isinstance(kept, Tensor):
        return []
    lengths = [first + rest for first, rest in zip(prompts, decoded, strict=True)]
    return [(n, n * (n + 1) // 2, *row) for n, row in zip(lengths, kept.tolist(), strict=True)]


def _kept(step: Step, number: int, decoded: Sequence[int]) -> Tensor:
    """[B, M] tokens of a step that ran each module."""
    keeps = torch.stack(step.keeps(), dim=1)
    if step.token_mask is not None:
        keeps = keeps & step.token_mask[:, None]
    if number:
        alive = torch.tensor(decoded, device=keeps.device) >= number
        keeps = keeps & alive[:, None, None]
    return keeps.sum(-1)


def sparsity_of(model: nn.Module, rans: Iterable[Sequence[int]]) -> dict[str, float] | None:
    """Return all senses of sparsity over many requests; None if none of them made a decision."""
    total = add_up(rans)
    if total is None:
        return None
    tokens, attended, *kept = total
    sites = [Site(layer.index, kind) for layer in routed_layers(model) for kind in MODULES]
    ratios = {site: n / tokens for site, n in zip(sites, kept, strict=True)}
    return sparsities(model, ratios, attended / tokens)
