"""Batched decoding: routes by token, routes by step, and dense, in quality and in speed.

    python benchmarks/shared_steps.py CHECKPOINT --data TEXT --batch-sizes 4,8,16,32

Excess is over dense on held-out rows, all read as if they were decoded: the tokens at one position
of a batch decide together. Speed is of decode steps after a prompt, in alternation.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import skipgpt
from skipgpt.benchmark.subject import Subject, subject_of_checkpoint
from skipgpt.benchmark.timing.clock import alternate
from skipgpt.benchmark.timing.phases import Cell, growing_cache
from skipgpt.config import DataConfig
from skipgpt.cost import savings
from skipgpt.data import load_blocks
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.meter import Meter
from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model.state import count_routing, routing_state, use_rule
from skipgpt.routing.calibration import calibrate
from skipgpt.routing.decision import DecisionRule, SharedThreshold, Threshold

Make = Callable[[float], DecisionRule]


def main() -> None:
    """Run and print a line per batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--sparsity", type=float, default=0.25, help="of FLOPs")
    parser.add_argument("--batch-sizes", default="4,8,16,32")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens that are read")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    sizes = [int(each) for each in given.batch_sizes.split(",")]
    subject = subject_of_checkpoint(
        given.checkpoint, given.data, tokens=max(sizes) * given.prompt_tokens
    )
    _, tokenizer = skipgpt.load(given.checkpoint)
    cutting = DataConfig(block_size=given.block_size)
    blocks = load_blocks(given.data, tokenizer, cutting, train_tokens=0)
    rows = [
        subsample_rows(blocks.calibration, given.tokens // 2),
        subsample_rows(blocks.held_out, given.tokens),
    ]
    saved = savings(subject.routed, "flops", given.block_size / 2)

    def read(text: Tensor, batch: int, rule: DecisionRule | None) -> tuple[float, float]:
        """Nats per token, and the share of FLOPs that is saved."""
        kind = "dense" if rule is None else "gated"
        model = subject.routed
        with (
            torch.no_grad(),
            use_rule(model, rule or Threshold()),
            skipgpt.execution(model, kind),
            count_routing(model) as counts,
        ):
            loss, tokens = total_loss(model, text, batch)
        return loss / tokens, 0.0 if rule is None else saved.share(counts.keep_ratios())

    start = routing_state(subject.routed).rule.value

    def found(make: Make, batch: int) -> DecisionRule:
        """The rule that saves the asked share of the calibration text."""
        with torch.no_grad():
            meter = Meter(subject.routed, rows[0], saved, batch, make)
            return make(calibrate(meter, given.sparsity, start))

    dense, _ = read(rows[1], 8, None)
    by_token = found(Threshold, 8)
    for batch in sizes:
        by_step = found(SharedThreshold, batch)
        quality = {"token": read(rows[1], batch, by_token), "step": read(rows[1], batch, by_step)}
        speed = speeds(subject, batch, {"token": by_token, "step": by_step}, given)
        print(
            f"batch {batch}: "
            + "; ".join(
                f"by {name}: excess {loss - dense:.3f}, {share:.1%} of FLOPs, {speed[name]:.2f}x"
                for name, (loss, share) in quality.items()
            ),
            flush=True,
        )


def speeds(
    subject: Subject, batch: int, rules: dict[str, DecisionRule], given: argparse.Namespace
) -> dict[str, float]:
    """Median speed-up over dense of decode steps, by rule."""
    cell = Cell("decode", subject.prompts(batch, given.prompt_tokens), given.new_tokens)
    with torch.no_grad():
        tasks = {"dense": cell.task(subject.dense, growing_cache)}
        tasks |= {name: cell.task(subject.executing("auto", rule)) for name, rule in rules.items()}
        seconds = alternate(tasks, given.repeats, subject.device)
    return {
        name: statistics.median(a / b for a, b in zip(seconds["dense"], own, strict=True))
        for name, own in seconds.items()
    }


if __name__ == "__main__":
    main()
