"""Merged exports to serve, engines to serve them, and what transformers makes of the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import zoo
from skipgpt.config import RouterConfig
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.export.merged import as_auto_model
from skipgpt.model.auto import register
from skipgpt.model.base import load_base
from skipgpt.model.sparsity import at_sparsity
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers, routed_layers, routers, stand_ins
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.routing.router import KEEP
from tiny import byte_tokenizer

ENGINE = Path(__file__).with_name("engine.py")
SMALL = {"max_model_len": 512, "max_num_seqs": 8, "block_size": 32}
WAYS = tuple(
    SMALL
    | {
        "enable_prefix_caching": cached,
        "enable_chunked_prefill": chunked,
        "max_num_batched_tokens": 96 if chunked else 512,
    }
    for cached in (True, False)
    for chunked in (True, False)
)
"""Prefix caching on and off, and chunks of prompts beside the decoding of others on and off."""
TOGETHER = WAYS[0]
MIXED = (3, 17, 40, 64, 100, 150, 200, 5)
"""Lengths of prompts that are in flight together."""


def write(model: Any, sparsity: float, folder: Path) -> Any:
    """Save a routed model as `skipgpt export --merged` does; returns what transformers loads."""
    merged = as_auto_model(model, sparsity)
    merged.generation_config.eos_token_id = None
    merged.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    register()
    return AutoModelForCausalLM.from_pretrained(folder)


def routed_by_margins(folder: Path) -> Any:
    """The bundled `nano` with random routers, calibrated, and stand-ins that add something."""
    model, _ = load_base("nano")
    torch.manual_seed(3)
    add_routers(model, RouterConfig(normalize=True, stand_in=4))
    for each in stand_ins(model).values():
        nn.init.normal_(each.up.weight, std=0.1)
    with mock.patch("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.1, 0.25, 0.4, 0.6)):
        calibrate(model.eval(), torch.randint(1, 4000, (16, 64)), target=0.4)
    return write(model, 0.4, folder)


@torch.no_grad()
def routed_by_tokens(model: Any, folder: Path, **router: Any) -> Any:
    """A model whose embedding says for each token what skips: a quarter more at each of 3 steps.

    Nothing is ever added to the parts of the stream that routers read, so no rounding of one
    engine or another can turn a decision.
    """
    torch.manual_seed(5)
    add_routers(model, RouterConfig(stand_in=2, **router))
    sites = list(routers(model).items())
    table = model.get_input_embeddings().weight
    levels = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    for column, (_, each) in enumerate(sites):
        table[:, column] = levels[torch.randint(4, (len(table),))]
        each.weight.zero_()
        each.weight[KEEP, column] = 1
    for layer in routed_layers(model):
        for each in (layer.attn_stand_in, layer.mlp_stand_in):
            nn.init.normal_(each.up.weight, std=0.1)
            each.up.weight[: len(sites)] = 0
        layer.self_attn.o_proj.weight[: len(sites)] = 0
        layer.mlp.down_proj.weight[: len(sites)] = 0
    points = ((0.0, float("-inf")), (0.25, -2.0), (0.5, 0.0), (0.75, 2.0))
    routing_state(model).curves = Curves.of_modules(CalibrationCurve(points))
    return write(model.eval(), 0.5, folder)


def tiny_routed_by_tokens(family: str, folder: Path, **router: Any) -> Any:
    """The same of a small random model of a family."""
    base = zoo.build(family, initializer_range=0.2, **size_of(family))
    return routed_by_tokens(base, folder, **router)


def size_of(family: str) -> dict[str, Any]:
    """Small, with heads that vLLM's kernel takes, and one kind of attention in all layers."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    size: dict[str, Any] = {"hidden_size": 128, "max_position_embeddings": 512, **heads}
    if family.startswith("qwen"):
        size |= {"layer_types": None, "use_sliding_window": False}
    return size


def prompts(*lengths: int, vocabulary: int = 4000, seed: int = 1) -> list[list[int]]:
    """Token ids at random, one prompt a length."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocabulary, (n,), generator=draw).tolist() for n in lengths]


def requests(texts: list[list[int]], tokens: int = 64, **more: Any) -> list[dict[str, Any]]:
    """Requests of a round."""
    return [{"prompt": text, "tokens": tokens, **more} for text in texts]


def serve(
    folder: Path,
    *engines: dict[str, Any],
    apart: bool = False,
    plugins: bool = True,
    ranks: int = 1,
) -> Any:
    """What engines answer, by engine, round and request.

    Args:
        folder: for the answers.
        engines: see `engine.py`.
        apart: run the engine's core in another process, as `vllm serve` does.
        plugins: False is vLLM as if skipgpt were not installed.
        ranks: how many processes share a model; each gets a core.
    """
    out = folder / "answers.json"
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(apart)),
        "OMP_NUM_THREADS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if not plugins:
        environment["VLLM_PLUGINS"] = ""
    if ranks > 1:
        cores = sorted(os.sched_getaffinity(0))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
            str(cores[rank % len(cores)]) for rank in range(ranks)
        )
    job = json.dumps({"out": str(out), "engines": engines})
    done = subprocess.run(
        [sys.executable, str(ENGINE)],
        input=job,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(out.read_text(encoding="utf-8"))


@torch.no_grad()
def expected(model: Any, request: dict[str, Any]) -> list[int]:
    """The tokens that our own model makes of a request."""
    ids = torch.tensor([request["prompt"]])
    options = {"max_new_tokens": request["tokens"], "do_sample": False}
    if "sparsity" not in request:
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    else:
        with at_sparsity(model, request["sparsity"]):
            made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return made[0, ids.shape[1] :].tolist()


def check_ways(
    folder: Path, model: Any, asked: list[dict[str, Any]], ways: tuple[dict[str, Any], ...]
) -> None:
    """Each way gives our own model's tokens, twice: a prefix cache is made, and then used."""
    right = [expected(model, request) for request in asked]
    engines = [{"options": {"model": str(folder)} | way, "rounds": [asked] * 2} for way in ways]
    for way, rounds in zip(ways, serve(folder.parent, *engines), strict=True):
        for answers in rounds:
            assert [answer["tokens"] for answer in answers] == right, way
        cached = max(answer["cached"] for answer in rounds[1])
        assert cached >= 160 if way["enable_prefix_caching"] else not cached
