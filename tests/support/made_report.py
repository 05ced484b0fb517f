"""Reports at random, whose text and size are as a test wants them."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Sequence

import torch

from skipgpt.analysis import DenseTrace, TextTrace
from skipgpt.analysis.trace import Text
from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.config import RouterConfig
from skipgpt.evaluation.closeness import Closeness
from skipgpt.evaluation.perplexity import Perplexity
from skipgpt.report.analyses import ANALYSES, Measured
from skipgpt.report.content import Report, Stop

DIAL = (0.0, 0.25, 0.5, 0.75)
WORDS = ("The", " cat", " sat", ".", "\n", " Ünï", "", "code", "12", " and", "\t")


def made(
    pieces: Sequence[str] | None = None,
    *,
    layers: int = 3,
    row: int = 16,
    dial: Sequence[float] = DIAL,
    title: str = "tiny on a text",
    seed: int = 0,
) -> Report:
    """A report of random decisions, each stop of the dial about as sparse as it asks."""
    pieces = tuple(pieces or WORDS * 4)
    tokens = len(pieces)
    random = torch.Generator().manual_seed(seed)
    text = Text(
        pieces,
        torch.randint(50, (tokens,), generator=random),
        torch.arange(tokens) // row,
        torch.arange(tokens) % row,
    )
    surprisal = 4 * torch.rand(tokens, generator=random)
    surprisal[text.position == 0] = torch.nan
    margin = torch.rand(layers, 2, tokens, generator=random)
    norm = 1 + torch.rand(layers + 1, tokens, generator=random)
    entropy = torch.rand(tokens, generator=random)
    dense = DenseTrace(
        text,
        surprisal,
        entropy,
        norm,
        cosine=torch.rand(layers, 2, tokens, generator=random),
        layer_cosine=torch.rand(layers, tokens, generator=random),
        nll_per_token=2.0,
    )
    traces = {}
    for asked in dial:
        keep = margin >= asked
        share = 1 - keep.double().mean((0, 2))
        senses = {"module": share.mean().item(), "attn": share[0].item(), "mlp": share[1].item()}
        senses |= {"params": 0.8 * senses["module"], "flops": 0.7 * senses["module"]}
        close = Closeness(asked**2, 1 - asked / 2)
        measured = Perplexity.of(2 + asked**3, tokens, senses, closeness=close)
        trace = TextTrace(
            text,
            surprisal,
            entropy,
            norm * (1 + asked),
            keep=keep,
            measured=measured,
        )
        traces[asked] = trace
    at = min(1, len(dial) - 1)
    own = traces[dial[at]]
    curve = tuple((each, each) for each in dial)
    curves = {"modules": curve} if len(dial) > 1 else {}
    info = CheckpointInfo(
        "bases/tiny", "0123abcd", RouterConfig(), stages=("router",), curves=curves
    )
    return Report(
        title=title,
        facts={
            "date": "2026-01-02",
            "hardware": {"device": "a machine", "torch": "2", "transformers": "5"},
            "sources": ["text.txt"],
            "read": f"{tokens} tokens",
            "notes": [],
        },
        checkpoint=dataclasses.asdict(info),
        cost={
            "parameters": 1000,
            "added": {"routers": 0.01, "stand_ins": 0.02},
            "weight_bytes": 4_000_000,
            "flops_per_token": {"dense": 2.5e6, "routed": 1.9e6},
            "cache": {"tokens": 8, "bytes": 800, "dense_bytes": 800, "saved": 0.0, "attn": 0.2},
            "ideal_speedup": {"prefill": 1.31, "decode": 1.21},
            "ideal_of": {"prompt_tokens": 16, "batch_size": 1},
        },
        dense=Perplexity.of(2.0, tokens),
        stops=tuple(Stop(asked, trace.keep, trace.measured) for asked, trace in traces.items()),
        at=at,
        trace=own,
        surprisal=surprisal,
        tables=tuple(analyse(Measured(own, dense, traces, {})) for analyse in ANALYSES),
        run={
            "run": {"data": ["stdlib"], "command": ["skipgpt", "train"], "config": {"a": {"b": 1}}},
            "metrics": [
                {"stage": "router", "step": n, "lm_loss": 3 - n / 10, "sparsity": n / 10}
                for n in range(1, 6)
            ],
        },
    )


def warned(report: Report, *warnings: str) -> Report:
    """The same report with warnings in its health table."""
    tables = tuple(
        dataclasses.replace(table, warnings=warnings) if table.name == "health" else table
        for table in report.tables
    )
    return dataclasses.replace(report, tables=tables)


def read_bits(packed: str, shape: Sequence[int]) -> torch.Tensor:
    """The decisions of a report as JSON: flat element i is bit i % 8 of byte i // 8."""
    data = base64.b64decode(packed)
    bits = [data[n // 8] >> n % 8 & 1 for n in range(math.prod(shape))]
    return torch.tensor(bits, dtype=torch.bool).view(*shape)
