"""Does it help to shift computation from MLP to attention as context grows?

The paper's second open question. Thresholds tilt along the context: at position p of T, with
f = p / (T - 1) - 1/2, attention is kept above `t - tilt * f` and the MLP above `t + tilt * f`, so
that a positive tilt spends more on attention late in the context. For every tilt, t is set on
calibration text to the FLOPs of the flat threshold; loss is measured on other held-out text.

    python experiments/context.py CHECKPOINT --data stdlib --block-size 1024
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import skipgpt
from skipgpt.config import DataConfig
from skipgpt.data import load_blocks
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.perplexity import Perplexity, perplexity, total_loss
from skipgpt.model.state import execution, record_routing, routing_state, use_rule
from skipgpt.routing.decision import ModuleDecision, Site, Threshold

TILTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""In standard deviations of the margins."""


@dataclass(frozen=True)
class Tilted:
    """A threshold that falls for attention and rises for the MLP along whole rows [B, T]."""

    value: float
    tilt: float

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        place = torch.linspace(-0.5, 0.5, margin.shape[1], device=margin.device)
        sign = -1 if site.module == "attn" else 1
        return ModuleDecision.hard(margin > self.value + sign * self.tilt * place, margin)


def measure(model: Any, blocks: Tensor, rule: Any) -> Perplexity:
    """Loss and sparsity of blocks [N, T] under a rule."""
    with use_rule(model, rule):
        return perplexity(model, blocks)


def value_at_flops(model: Any, blocks: Tensor, tilt: float, flops: float, span: float) -> float:
    """The threshold at which a tilt saves this share of FLOPs, by bisection."""
    low, high = routing_state(model).rule.value - span, routing_state(model).rule.value + span
    for _ in range(9):
        middle = (low + high) / 2
        saved = measure(model, blocks, Tilted(middle, tilt)).sparsity["flops"]
        low, high = (middle, high) if saved < flops else (low, middle)
    return (low + high) / 2


def main() -> None:
    """Measure every tilt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--base", help="where the base model lies, if it has moved")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--block-size", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    model, tokenizer = skipgpt.load(options.checkpoint, base=options.base, dtype=options.dtype)
    config = DataConfig(block_size=options.block_size)
    blocks = load_blocks(options.data, tokenizer, config)
    calibration = subsample_rows(blocks.calibration, options.tokens // 2)
    held = subsample_rows(blocks.held_out, options.tokens)
    with execution(model, "dense"):
        dense = perplexity(model, held).nll_per_token
    rule = routing_state(model).rule
    assert isinstance(rule, Threshold)
    with execution(model, "sparse"), record_routing(model) as trace:
        total_loss(model, calibration)
    spread = trace.margins().std().item()
    flops = measure(model, calibration, rule).sparsity["flops"]
    print("| tilt | excess | module | attn | mlp | flops |\n|---|---|---|---|---|---|")
    rows = []
    for tilt in TILTS:
        value = rule.value
        if tilt:
            value = value_at_flops(model, calibration, tilt * spread, flops, 2 * spread)
        found = measure(model, held, Tilted(value, tilt * spread))
        shares = " | ".join(f"{found.sparsity[n]:.1%}" for n in ("module", "attn", "mlp", "flops"))
        print(f"| {tilt:g} | {found.nll_per_token - dense:.4f} | {shares} |", flush=True)
        rows.append({"tilt": tilt, "excess_nll": found.nll_per_token - dense, **found.sparsity})
    print(json.dumps({"block_size": options.block_size, "dense": dense, "rows": rows}))


if __name__ == "__main__":
    main()
