"""Prefill of a Llama shape on this machine: dense against sparse, at forced random sparsity.

    python benchmarks/prefill.py --out benchmarks/results/prefill-cpu.json

Weights are random and never downloaded; routes are forced at random, routers included in what is
timed. Dense is the untouched transformers model. Runs alternate in one process after a warm-up;
figures are medians. The ideal speed-up is dense FLOPs over executed FLOPs of the whole model, head
included; efficiency is the share of it that is reached.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from skipgpt.cost import sparsities
from skipgpt.model.surgery import add_routers
from skipgpt.model.trace import deciding, record_routing
from skipgpt.routing.decision import RandomRoutes

SHAPES = {
    "llama-160m": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    }
}


def seconds(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Wall-clock of one prefill that fills a cache and reads the last logits."""
    started = time.perf_counter()
    model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - started


@torch.inference_mode()
def measure(sparsity: float, shape: str, tokens: int, batch: int, repeats: int) -> dict[str, float]:
    """One row: dense and sparse in turn."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape])
    dense = LlamaForCausalLM(config).eval()
    routed = LlamaForCausalLM(config)
    routed.load_state_dict(dense.state_dict())
    add_routers(routed.eval())
    ids = torch.randint(config.vocab_size, (batch, tokens))
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    with deciding(routed, RandomRoutes(sparsity)):
        with record_routing(routed) as trace:
            seconds(routed, ids)
        seconds(dense, ids)
        for _ in range(repeats):
            times["dense"].append(seconds(dense, ids))
            times["sparse"].append(seconds(routed, ids))
    # Only the last token's logits are computed, so the head hardly counts in either.
    saved = sparsities(
        routed, trace.keep_ratios(), context=(tokens + 1) / 2, head_tokens=1 / tokens
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["dense"], times["sparse"], strict=True)]
    speedup, ideal = statistics.median(ratios), 1 / (1 - saved["flops"])
    return {
        "phase": "prefill",
        "shape": shape,
        "batch_size": batch,
        "prompt_tokens": tokens,
        "sparsity": trace.sparsity(),
        "dense_seconds": medians["dense"],
        "sparse_seconds": medians["sparse"],
        "speedup": speedup,
        "speedup_range": [min(ratios), max(ratios)],
        "ideal_speedup": ideal,
        "efficiency": speedup / ideal,
    }


def main() -> None:
    """Measure the grid and write it beside the hardware it ran on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-160m")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.25, 0.4])
    options = parser.parse_args()
    rows = []
    for sparsity in options.sparsity:
        row = measure(sparsity, options.shape, options.tokens, options.batch_size, options.repeats)
        rows.append(row)
        print(
            f"sparsity {row['sparsity']:.1%}: {row['speedup']:.3f}x of an ideal "
            f"{row['ideal_speedup']:.3f}x, efficiency {row['efficiency']:.1%}"
        )
    result = {
        "rows": rows,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "float32",
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
