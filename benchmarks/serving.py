"""Throughput of vLLM with the plug-in against dense vLLM on the same weights, in one run.

    .venv-serving/bin/python benchmarks/serving.py --out benchmarks/results/serving-cpu.json
    .venv-serving/bin/python benchmarks/serving.py --cached --requests 8 --prompt-tokens 2048 \
        --new-tokens 64 --out benchmarks/results/serving-decode-cpu.json
    .venv-serving/bin/python benchmarks/serving.py --checkpoint FIT25 --data WEB \
        --prompt-tokens 512,128,32 --new-tokens 16,128,256 --requests 1,8,32 --out served.json

With a checkpoint, routes are learned and prompts are text. Else weights are random and so are
routes: each module of a token skips with the given probability, which the token's embedding holds
where the routers read it. Both engines stay up; they take turns, and each ratio is between
neighbours in time. End to end: from handing over all requests to the last token of the last one.
With `--cached` prompts are in the prefix cache before, so that next to nothing but decoding is
timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipgpt.benchmark.shapes import shape_config
from skipgpt.checkpoint.folder import read_info
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.data import load_blocks
from skipgpt.export.merged import as_auto_model, export_merged
from skipgpt.model.base import load_base
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers, routed_layers, routers
from skipgpt.routing.curve import CalibrationCurve
from skipgpt.routing.router import KEEP
from skipgpt.system.hardware import hardware


@torch.no_grad()
def write_models(shape: str, sparsity: float, folder: Path) -> None:
    """The same random weights as a dense model and as a merged export."""
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


def write_exports(checkpoint: str, folder: Path) -> None:
    """The base of a checkpoint and its merged export."""
    export_merged(checkpoint, folder / "routed", dtype="float32")
    base, tokenizer = load_base(read_info(Path(checkpoint)).base, dtype="float32")
    base.save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")


def text_prompts(folder: Path, sources: list[str]) -> Tensor:
    """Token ids of documents, one behind the other."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "dense")
    config = DataConfig(block_size=2048, held_out=0.1)
    return load_blocks(sources, tokenizer, config).held_out.flatten()


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


@dataclass(frozen=True)
class Load:
    """Requests that are handed over at once."""

    requests: int
    prompt_tokens: int
    new_tokens: int
    cached: bool

    def rows(
        self, runs: dict[str, tuple[Any, float | None]], ids: Tensor, repeats: int
    ) -> list[dict[str, Any]]:
        """One row per engine; `runs` has for each its name, the engine and the sparsity."""
        shape = self.requests, self.prompt_tokens
        prompts = ids[: math.prod(shape)].view(shape).tolist()
        for llm, sparsity in runs.values():
            seconds(llm, prompts if self.cached else prompts[:2], 2, sparsity)
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, (llm, sparsity) in runs.items():
                taken[name].append(seconds(llm, prompts, self.new_tokens, sparsity))
        counted = 0 if self.cached else self.prompt_tokens
        tokens = self.requests * (counted + self.new_tokens)
        return [self._row(name, each, taken["dense"], tokens) for name, each in taken.items()]

    def _row(
        self, name: str, taken: list[float], dense: list[float], tokens: int
    ) -> dict[str, Any]:
        ratios = [of_dense / own for of_dense, own in zip(dense, taken, strict=True)]
        over_dense = statistics.median(ratios)
        print(
            f"{self.requests} x ({self.prompt_tokens} in, {self.new_tokens} out), {name}: "
            f"{statistics.median(taken):.2f} s, {over_dense:.2f}x dense",
            flush=True,
        )
        return {
            **dataclasses.asdict(self),
            "engine": name,
            "seconds": [round(one, 2) for one in taken],
            "tokens_per_second": round(tokens / statistics.median(taken), 1),
            "throughput_over_dense": round(over_dense, 3),
            "throughput_over_dense_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }


def numbers(text: str) -> list[int]:
    """`8,32` -> [8, 32]."""
    return [int(each) for each in text.split(",")]


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="learned routes; random ones where left out")
    parser.add_argument("--data", action="append", help="text of the prompts of a checkpoint")
    parser.add_argument("--shape", default="llama-160m")
    parser.add_argument("--sparsity", help="with commas; a checkpoint's own, or 0.4")
    parser.add_argument("--requests", type=numbers, default=[32])
    parser.add_argument("--prompt-tokens", type=numbers, default=[512])
    parser.add_argument("--new-tokens", type=numbers, default=[16], help="one per prompt length")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cached", action="store_true", help="prompts are cached before")
    parser.add_argument(
        "--dense-above", type=int, help="also time an engine with skipgpt_dense_above set to this"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.checkpoint and not given.data:
        parser.error("--checkpoint needs --data")
    if not given.sparsity:
        info = read_info(Path(given.checkpoint)) if given.checkpoint else None
        given.sparsity = str(info.target_sparsity if info else 0.4)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM
    from vllm import __version__ as vllm_version

    shares = [float(each) for each in given.sparsity.split(",")]
    pairs = list(zip(given.prompt_tokens, given.new_tokens, strict=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.checkpoint:
            write_exports(given.checkpoint, folder)
            ids = text_prompts(folder, given.data)
        else:
            write_models(given.shape, shares[0], folder)
            drawn = torch.Generator().manual_seed(1)
            ids = torch.randint(
                1, 8000, (max(given.requests) * max(given.prompt_tokens),), generator=drawn
            )
        wanted = max(given.requests) * max(given.prompt_tokens)
        if len(ids) < wanted:
            parser.error(f"--data has {len(ids):,} held-out tokens; {wanted:,} are needed")
        options = {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_prefix_caching": given.cached,
            "skip_tokenizer_init": True,
            "max_model_len": max(map(sum, pairs)),
        }
        dense, routed = (LLM(f"{folder}/{kind}", **options) for kind in ("dense", "routed"))
        runs: dict[str, tuple[Any, float | None]] = {"dense": (dense, None)}
        for share in [0.0, *shares]:
            runs[f"plug-in, sparsity {share:g}"] = routed, share
        if (most := given.dense_above) is not None:
            config = {"skipgpt_dense_above": most}
            switching = LLM(f"{folder}/routed", additional_config=config, **options)
            for share in shares:
                runs[f"plug-in, sparsity {share:g}, dense above {most}"] = switching, share
        loads = [
            Load(requests, *pair, given.cached) for pair in pairs for requests in given.requests
        ]
        rows = [row for load in loads for row in load.rows(runs, ids, given.repeats)]
    document = {
        "settings": {k: v for k, v in vars(given).items() if k != "out"},
        "hardware": hardware(torch.device("cpu")),
        "threads": os.environ.get("OMP_NUM_THREADS", "as vLLM chooses"),
        "load": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "vllm": vllm_version},
        "rows": rows,
    }
    given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
