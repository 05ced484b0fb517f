"""A whole model with kernels against its gated twin, and its steps as one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from on_gpu import CUDA
from torch import Tensor
from transformers import StaticCache

from cases import LEFT_PADDED, ONE_ROW, SITES, Inputs, routed
from skipgpt.benchmark.bench import Grid, bench
from skipgpt.benchmark.subject import subject_of_shape
from skipgpt.benchmark.timing.cuda_graph import StaticDecode, can_capture, captured
from skipgpt.model.execution.plan import needs_host_sync
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import Forced

# Float32 at full precision; see `cases.py`. On a GPU sums are split more ways.
CLOSE = {"rtol": 0.0, "atol": 1e-4}
FAMILIES = ["llama", "qwen2", "qwen3", "gemma", "granite", "cohere2"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def routes(batch: int, tokens: int, keep: float = 0.5) -> dict[Any, Tensor]:
    return {site: torch.rand(batch, tokens, device=CUDA) < keep for site in SITES}


def on_gpu(inputs: Inputs) -> dict[str, Tensor]:
    return {name: each.to(CUDA) for name, each in inputs.given.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inputs", [ONE_ROW, LEFT_PADDED], ids=["one-row", "padded"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_prefill_with_kernels_equals_gated(family: str, inputs: Inputs, keep: float) -> None:
    model = routed(family).to(CUDA)
    assert not any(needs_host_sync(layer) for layer in routed_layers(model))
    real, given = inputs.real.to(CUDA), on_gpu(inputs)
    logits = []
    with use_rule(model, Forced(routes(len(real), inputs.tokens, keep))):
        for kind in ("gated", "sparse"):
            with execution(model, kind):
                logits.append(model(**given, use_cache=False).logits[real])
    torch.testing.assert_close(logits[1], logits[0], **CLOSE)


@pytest.mark.parametrize("batch", [1, 3, 17, 65])
def test_steps_with_kernels_equal_gated(batch: int) -> None:
    model, ids = routed("llama").to(CUDA), torch.randint(1, 257, (batch, 9), device=CUDA)
    steps = [routes(batch, 6), *(routes(batch, 1) for _ in range(3))]
    logits: dict[str, list[Tensor]] = {"gated": [], "sparse": []}
    for kind, made in logits.items():
        cache, start = StaticCache(config=model.config, max_cache_len=40), 0
        for keep in steps:
            end = start + keep[SITES[0]].shape[1]
            with use_rule(model, Forced(keep)), execution(model, kind):
                made.append(model(ids[:, start:end], past_key_values=cache).logits)
            start = end
    for actual, expected in zip(logits["sparse"], logits["gated"], strict=True):
        torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_captured_step_follows_other_routes(batch: int) -> None:
    """The graph reads the routes where they are; it is replayed after they were changed there."""
    model, ids = routed("llama").to(CUDA), torch.randint(1, 257, (batch, 9), device=CUDA)
    assert can_capture(model)
    keep = routes(batch, 1)
    with use_rule(model, Forced()):
        replayed, launched = StaticDecode(model, ids, 4), StaticDecode(model, ids, 4)
    with use_rule(model, Forced(keep)):
        step = captured(replayed)
        outcomes = []
        for share in (0.0, 0.5, 0.5, 1.0):
            for site, flags in routes(batch, 1, share).items():
                keep[site].copy_(flags)
            step()
            with execution(model, "gated"):
                launched.step()
            outcomes.append(replayed.token.clone())
            assert torch.equal(replayed.token, launched.token)
    for ours, theirs in zip(replayed._cache.layers, launched._cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, **CLOSE)
        torch.testing.assert_close(ours.values, theirs.values, **CLOSE)
    assert len({tuple(each.flatten().tolist()) for each in outcomes}) > 1


def test_a_benchmark_captures_both_sides() -> None:
    subject = subject_of_shape("llama-tiny", device="cuda", dtype="bfloat16")
    sizes = {"batch_sizes": (1, 2), "prompt_tokens": (32,), "sparsities": (0.5,)}
    grid = Grid(("prefill", "decode"), **sizes, executions=("auto",), repeats=2)
    result = bench(subject, grid)
    assert result.facts["decode"] == "as a CUDA graph"
    assert [row.phase for row in result.rows] == ["prefill"] * 2 + ["decode"] * 2
    assert all(0.2 < row.sparsity < 0.8 for row in result.rows)
