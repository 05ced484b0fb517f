"""Throughput of vLLM with the plug-in against dense vLLM on the same weights, in one run.

    .venv-serving/bin/python benchmarks/serving.py --out benchmarks/results/serving-cpu.json
    .venv-serving/bin/python benchmarks/serving.py --cached --requests 8 --prompt-tokens 2048 \
        --new-tokens 64 --out benchmarks/results/serving-decode-cpu.json

Weights are random and so are routes: each module of a token skips with the given probability,
which the token's embedding holds where the routers read it. Both engines stay up; they take
turns, and each ratio is between neighbours in time. End to end: from handing over all requests to
the last token of the last one. With `--cached` prompts are in the prefix cache before, so that next
to nothing but decoding is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from skipgpt.benchmark.shapes import shape_config
from skipgpt.config import RouterConfig
from skipgpt.export.merged import as_auto_model
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers, routed_layers, routers
from skipgpt.routing.curve import CalibrationCurve
from skipgpt.routing.router import KEEP
from skipgpt.system.hardware import hardware


@torch.no_grad()
def write_models(shape: str, sparsity: float, folder: Path) -> None:
    """The same random weights as a dense model and as a merged export."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape_config(shape), dtype=torch.float32)
    sites = 2 * model.config.num_hidden_layers
    table = model.get_input_embeddings().weight
    keeps = torch.rand(len(table), sites) > sparsity
    table[:, :sites] = keeps.float() - 0.5
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:sites] = 0
        layer.mlp.down_proj.weight[:sites] = 0
    model.save_pretrained(folder / "dense")
    add_routers(model, RouterConfig(normalize=True, stand_in=16))
    for column, each in enumerate(routers(model).values()):
        each.weight.zero_()
        each.weight[KEEP, column] = 1
    for layer in routed_layers(model):
        for each in (layer.attn_stand_in, layer.mlp_stand_in):
            each.up.weight[sites:].normal_(std=0.02)
    points = ((0.0, float("-inf")), (sparsity, 0.0))
    routing_state(model).curve = CalibrationCurve(points)
    as_auto_model(model, sparsity).save_pretrained(folder / "routed")


def seconds(llm: Any, prompts: list[list[int]], tokens: int, sparsity: float | None) -> float:
    """How long all requests take together."""
    from vllm import SamplingParams

    extra = None if sparsity is None else {"sparsity": sparsity}
    parameters = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra
    )
    began = time.perf_counter()
    llm.generate([{"prompt_token_ids": each} for each in prompts], parameters, use_tqdm=False)
    return time.perf_counter() - began


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-160m")
    parser.add_argument("--sparsity", type=float, default=0.4)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cached", action="store_true", help="prompts are cached before")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM
    from vllm import __version__ as vllm_version

    shape = (arguments.requests, arguments.prompt_tokens)
    prompts = torch.randint(1, 8000, shape, generator=torch.Generator().manual_seed(1)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        write_models(arguments.shape, arguments.sparsity, Path(folder))
        options = {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_prefix_caching": arguments.cached,
            "skip_tokenizer_init": True,
            "max_model_len": arguments.prompt_tokens + arguments.new_tokens,
        }
        llms = {kind: LLM(f"{folder}/{kind}", **options) for kind in ("dense", "routed")}
        runs: dict[str, tuple[str, float | None]] = {
            "dense": ("dense", None),
            "plug-in, sparsity 0": ("routed", 0.0),
            f"plug-in, sparsity {arguments.sparsity}": ("routed", arguments.sparsity),
        }
        for kind, sparsity in runs.values():
            seconds(llms[kind], prompts if arguments.cached else prompts[:2], 2, sparsity)
        taken: dict[str, list[float]] = {name: [] for name in runs}
        load = [os.getloadavg()[0]]
        for _ in range(arguments.repeats):
            for name, (kind, sparsity) in runs.items():
                taken[name].append(seconds(llms[kind], prompts, arguments.new_tokens, sparsity))
                print(f"{name}: {taken[name][-1]:.1f} s", flush=True)
            load.append(os.getloadavg()[0])
    counted = 0 if arguments.cached else arguments.prompt_tokens
    tokens = arguments.requests * (counted + arguments.new_tokens)
    rows = []
    for name, each in taken.items():
        ratios = [dense / own for dense, own in zip(taken["dense"], each, strict=True)]
        row = {
            "engine": name,
            "seconds": [round(one, 2) for one in each],
            "tokens_per_second": round(
                tokens / statistics.median(each),
                1,
            ),
            "throughput_over_dense": round(statistics.median(ratios), 3),
            "throughput_over_dense_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        rows.append(row)
        print(f"{name}: {row['throughput_over_dense']:.2f}x dense")
    document = {
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"},
        "hardware": hardware(torch.device("cpu")),
        "threads": os.environ.get("OMP_NUM_THREADS", "as vLLM chooses"),
        "load_before_and_after_each_round": [round(one, 2) for one in load],
        "versions": {"torch": torch.__version__, "vllm": vllm_version},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
