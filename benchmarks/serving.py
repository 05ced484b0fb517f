r"""Time vLLM with the plug-in against dense vLLM on the same weights, in one run.

    .venv-serving/bin/python benchmarks/serving.py --out serving.json
    .venv-serving/bin/python benchmarks/serving.py --cached --requests 8 --prompt-tokens 2048 \
        --new-tokens 64 --out decode.json
    .venv-serving/bin/python benchmarks/serving.py --checkpoint FIT25 --data WEB \
        --sparsity 0.15,0.25 --prompt-tokens 512,128,32 --new-tokens 16,128,256 \
        --requests 1,8,32 --out served.json

With a checkpoint, routes are learned and prompts are text. Else weights are random and so are
routes: each module of a token skips with the given probability, which the token's embedding holds
where the routers read it. All engines stay up and take turns in a rotating order, and each ratio is
between neighbours in time. End to end: from handing over all requests to the last token of the last
one. With `--cached` prompts are in the prefix cache before, so that next to nothing but decoding is
timed.

The ideal is FLOPs of dense over FLOPs that run, which no engine exceeds but by luck. Each module's
share of tokens is counted by the same export in transformers on the same prompts, and assumed of
the new tokens as well. Latencies are vLLM's own, medians over requests and rounds.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import skipgpt
from record import parser_of, write_record
from skipgpt.benchmark.shapes import shape_config
from skipgpt.benchmark.timing.clock import Task, alternate
from skipgpt.benchmark.timing.phases import Cell, Cost
from skipgpt.checkpoint.folder import read_info
from skipgpt.cli.shared.settings import numbers
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.cost import work
from skipgpt.data import load_blocks
from skipgpt.export.merged import as_auto_model, export_merged
from skipgpt.model.base import load_base
from skipgpt.model.sparsity import at_sparsity
from skipgpt.model.state import count_routing, routing_state
from skipgpt.model.surgery import add_routers, routed_layers, routers
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.routing.router import KEEP


@torch.no_grad()
def write_models(shape: str, sparsity: float, folder: Path) -> None:
    """Write the same random weights as a dense model and as a merged export."""
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
    routing_state(model).curves = Curves.of_modules(CalibrationCurve(points))
    as_auto_model(model, sparsity).save_pretrained(folder / "routed")


def write_exports(checkpoint: str, folder: Path) -> None:
    """Write the base of a checkpoint and its merged export."""
    export_merged(checkpoint, folder / "routed", dtype="float32")
    base, tokenizer = load_base(read_info(Path(checkpoint)).base, dtype="float32")
    base.save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")


def text_prompts(folder: Path, sources: list[str]) -> Tensor:
    """Return the token ids of documents, one behind the other."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "dense")
    config = DataConfig(block_size=2048, held_out=0.1)
    return load_blocks(sources, tokenizer, config).held_out.flatten()


@dataclass(frozen=True)
class Engine:
    """An engine of vLLM as it is timed.

    Attributes:
        llm: the engine.
        sparsity: of its requests; None of dense.
        ideal: whether its ideal is known: one that may run without routers has none.
    """

    llm: Any
    sparsity: float | None = None
    ideal: bool = True

    def answer(self, prompts: list[list[int]], tokens: int) -> list[Any]:
        """Run all requests at once and return their metrics."""
        from vllm import SamplingParams

        extra = None if self.sparsity is None else {"sparsity": self.sparsity}
        parameters = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra
        )
        inputs = [{"prompt_token_ids": each} for each in prompts]
        return [each.metrics for each in self.llm.generate(inputs, parameters, use_tqdm=False)]


@dataclass(frozen=True)
class Load:
    """Requests that are handed over at once."""

    requests: int
    prompt_tokens: int
    new_tokens: int
    cached: bool

    def prompts(self, ids: Tensor) -> Tensor:
        """Return the prompts, [requests, prompt tokens]."""
        shape = self.requests, self.prompt_tokens
        return ids[: math.prod(shape)].view(shape)

    @torch.inference_mode()
    def ideal(self, model: Any, ids: Tensor, sparsity: float) -> float:
        """Return the FLOPs of dense over those that run; 1 at sparsity 0, which has no routing."""
        if not sparsity:
            return 1.0
        cell = Cell("decode" if self.cached else "generate", self.prompts(ids), self.new_tokens)
        with at_sparsity(model, sparsity), count_routing(model) as counts:
            for row in cell.ids:
                model(input_ids=row[None], use_cache=False, logits_to_keep=1)
        dense, run = (
            cell.flops(Cost(work(model, cell.prompt, keep), work(model, cell.between, keep)))
            for keep in (None, counts.keep_ratios())
        )
        return dense / run

    def rows(
        self, engines: dict[str, Engine], ids: Tensor, ideals: dict[float, float], repeats: int
    ) -> list[dict[str, Any]]:
        """Return a row per engine; `ideals` are by sparsity."""
        prompts = self.prompts(ids).tolist()
        metrics: dict[str, list[list[Any]]] = {name: [] for name in engines}
        # The round that is not timed fills the prefix cache.
        tasks = {
            name: Task(
                lambda _, name=name: metrics[name].append(
                    engines[name].answer(prompts, self.new_tokens)
                )
            )
            for name in engines
        }
        seconds = alternate(tasks, repeats, torch.device("cpu"))
        rows = []
        for name, each in engines.items():
            ideal = ideals[each.sparsity or 0.0] if each.ideal else None
            timed = [request for round_ in metrics[name][-repeats:] for request in round_]
            rows.append(self._row(name, seconds[name], seconds["dense"], timed, ideal))
        return rows

    def _row(
        self,
        name: str,
        taken: list[float],
        dense: list[float],
        metrics: list[Any],
        ideal: float | None,
    ) -> dict[str, Any]:
        ratios = [of_dense / own for of_dense, own in zip(dense, taken, strict=True)]
        over_dense, middle = statistics.median(ratios), statistics.median(taken)
        counted = 0 if self.cached else self.prompt_tokens
        tokens = self.requests * (counted + self.new_tokens)
        first = statistics.median(each.first_token_latency for each in metrics)
        between = statistics.median(
            (each.last_token_ts - each.first_token_ts) / max(1, self.new_tokens - 1)
            for each in metrics
        )
        print(
            f"{self.requests} x ({self.prompt_tokens} in, {self.new_tokens} out), {name}: "
            f"{middle:.2f} s, {over_dense:.2f}x dense"
            f"{'' if ideal is None else f' of {ideal:.2f}x'}, first token after {first:.2f} s, "
            f"then {1e3 * between:.0f} ms each",
            flush=True,
        )
        return {
            **dataclasses.asdict(self),
            "engine": name,
            "seconds": [round(one, 3) for one in taken],
            "tokens_per_second": round(tokens / middle, 1),
            "throughput_over_dense": round(over_dense, 3),
            "throughput_over_dense_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "ideal_speedup": None if ideal is None else round(ideal, 3),
            "time_to_first_token_seconds": round(first, 4),
            "inter_token_seconds": round(between, 4),
        }


def main() -> None:
    """Parse, measure, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--checkpoint", help="learned routes; random ones where left out")
    parser.add_argument("--data", action="append", help="text of the prompts of a checkpoint")
    parser.add_argument("--shape", default="llama-160m")
    parser.add_argument("--sparsity", help="with commas; a checkpoint's own, or 0.4")
    parser.add_argument("--requests", default="32", help="numbers with commas, as the next two")
    parser.add_argument("--prompt-tokens", default="512")
    parser.add_argument("--new-tokens", default="16", help="one per prompt length")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cached", action="store_true", help="prompts are cached before")
    parser.add_argument(
        "--dense-above", type=int, help="also time an engine with skipgpt_dense_above set to this"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.checkpoint and not given.data:
        parser.error("--checkpoint needs --data")
    info = read_info(Path(given.checkpoint)) if given.checkpoint else None
    if not given.sparsity:
        given.sparsity = str(info.target_sparsity if info else 0.4)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM
    from vllm import __version__ as vllm_version

    shares = numbers("--sparsity", given.sparsity, float)
    requests, lengths, new = (
        numbers(f"--{name.replace('_', '-')}", getattr(given, name), int)
        for name in ("requests", "prompt_tokens", "new_tokens")
    )
    pairs = list(zip(lengths, new, strict=True))
    loads = [Load(each, *pair, given.cached) for pair in pairs for each in requests]
    wanted = max(requests) * max(lengths)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if given.checkpoint:
            write_exports(given.checkpoint, folder)
            ids = text_prompts(folder, given.data)
        else:
            write_models(given.shape, shares[0], folder)
            drawn = torch.Generator().manual_seed(1)
            vocabulary = shape_config(given.shape).vocab_size
            ids = torch.randint(1, vocabulary, (wanted,), generator=drawn)
        if len(ids) < wanted:
            parser.error(f"--data has {len(ids):,} held-out tokens; {wanted:,} are needed")
        skipgpt.register()
        model = AutoModelForCausalLM.from_pretrained(folder / "routed").eval()
        ideals = [{each: load.ideal(model, ids, each) for each in (0.0, *shares)} for load in loads]
        del model
        options = {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_prefix_caching": given.cached,
            "skip_tokenizer_init": True,
            "max_model_len": max(map(sum, pairs)),
            "disable_log_stats": False,
        }
        dense, routed = (LLM(f"{folder}/{kind}", **options) for kind in ("dense", "routed"))
        engines = {"dense": Engine(dense)}
        for share in [0.0, *shares]:
            engines[f"plug-in, sparsity {share:g}"] = Engine(routed, share)
        if (most := given.dense_above) is not None:
            config = {"skipgpt_dense_above": most}
            switching = LLM(f"{folder}/routed", additional_config=config, **options)
            for share in shares:
                name = f"plug-in, sparsity {share:g}, dense above {most}"
                engines[name] = Engine(switching, share, ideal=False)
        rows = [
            row
            for load, each in zip(loads, ideals, strict=True)
            for row in load.rows(engines, ids, each, given.repeats)
        ]
    write_record(
        given.out,
        rows,
        subject=Path(info.base).name if info else given.shape,
        routes="learned" if info else "random",
        sparsity=shares,
        repeats=given.repeats,
        vllm=vllm_version,
        omp_num_threads=os.environ.get("OMP_NUM_THREADS", "as vLLM chooses"),
        load=os.getloadavg()[0],
    )


if __name__ == "__main__":
    main()
