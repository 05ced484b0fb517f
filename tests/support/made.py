"""Traces made by hand, whose answers are known."""

from __future__ import annotations

import torch
from torch import Tensor

from skipgpt.analysis.trace import DenseTrace, Text, TextTrace
from skipgpt.evaluation.perplexity import Perplexity


def text(pieces: list[str], rows: list[int] | None = None) -> Text:
    """A text whose equal pieces have equal ids, in rows of these lengths."""
    lengths = rows or [len(pieces)]
    known: dict[str, int] = {}
    ids = torch.tensor([known.setdefault(piece, len(known)) for piece in pieces])
    row = torch.cat([torch.full((n,), number) for number, n in enumerate(lengths)])
    position = torch.cat([torch.arange(n) for n in lengths])
    return Text(tuple(pieces), ids, row, position)


def routed(
    attn: Tensor,
    mlp: Tensor,
    *,
    of: Text | None = None,
    nll: float = 2.0,
    norm: float = 1.0,
    entropy: float = 1.0,
) -> TextTrace:
    """A trace in which attention and MLP of each layer [L, N] ran where said."""
    keep = torch.stack([attn, mlp], dim=1).bool()
    layers, _, tokens = keep.shape
    share = 1 - keep.float().mean().item()
    measured = Perplexity.of(nll, tokens, {"module": share, "attn": 0.0, "mlp": 0.0})
    return TextTrace(
        of or text([f"t{n}" for n in range(tokens)]),
        torch.full((tokens,), nll),
        torch.full((tokens,), entropy),
        torch.full((layers + 1, tokens), norm),
        keep=keep,
        measured=measured,
    )


def dense(
    tokens: int,
    layers: int = 2,
    *,
    of: Text | None = None,
    surprisal: Tensor | None = None,
    cosine: Tensor | None = None,
    layer_cosine: Tensor | None = None,
    nll: float = 2.0,
) -> DenseTrace:
    """A dense trace; what is not given is the same everywhere."""
    return DenseTrace(
        of or text([f"t{n}" for n in range(tokens)]),
        torch.full((tokens,), nll) if surprisal is None else surprisal,
        torch.ones(tokens),
        torch.ones(layers + 1, tokens),
        cosine=torch.ones(layers, 2, tokens) if cosine is None else cosine,
        layer_cosine=torch.ones(layers, tokens) if layer_cosine is None else layer_cosine,
        nll_per_token=nll,
    )
