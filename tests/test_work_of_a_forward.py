"""The work of one forward, against numbers by hand, what torch counts and real caches."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from cases import SITES, layouts, routed
from skipgpt.config import RouterConfig
from skipgpt.cost import Forward, Work, layer_costs, work
from skipgpt.model.caches.policy import cache_bytes
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import add_routers, routed_layers, routers
from skipgpt.routing.decision import Forced, Site
from tiny import tiny_base, tiny_routed

# The tiny Llama: D 32, 4 heads of 8, 2 key-value heads, MLP 48, 3 layers, 257 tokens, float32.
KV, QO, MLP, HEAD = 2 * 32 * 16, 2 * 32 * 32, 3 * 32 * 48, 257 * 32
ROUTERS = 6 * (2 * 32 + 2)
EVERYWHERE = [Site(layer, kind) for layer in range(3) for kind in ("attn", "mlp")]


def keeping(attn: float, mlp: float) -> dict[Site, float]:
    return {site: attn if site.module == "attn" else mlp for site in EVERYWHERE}


def test_a_dense_prefill_by_hand() -> None:
    got = work(tiny_routed(), Forward(batch_size=2, tokens=7, cached=3))
    assert got == Work(
        linear=2 * 14 * 3 * (KV + QO + MLP),
        core=4 * 14 * 3 * 32 * (3 + 4),
        head=2 * 2 * HEAD,
        routing=0,
        weight_bytes=4 * (3 * (KV + QO + MLP) + HEAD),
        cache_bytes=4 * 3 * 32 * (2 * 3 + 14),
    )


def test_a_decode_step_reads_what_some_row_of_the_batch_needs() -> None:
    forward = Forward(batch_size=2, tokens=1, cached=9)
    got = work(tiny_routed(), forward, keeping(attn=0.5, mlp=0.25))
    read = KV + 0.75 * QO + (1 - 0.75**2) * MLP
    assert got.weight_bytes == pytest.approx(4 * (3 * read + HEAD + ROUTERS))
    # Half of the two rows read their nine tokens; both write one.
    assert got.cache_bytes == 4 * 3 * 32 * (0.5 * 2 * 9 + 2)
    assert got.linear == 2 * 2 * 3 * (KV + 0.5 * QO + 0.25 * MLP)
    assert got.core == 4 * 2 * 3 * 0.5 * 32 * 10
    assert got.routing == 2 * 2 * ROUTERS


def test_a_measured_union_takes_the_place_of_rows_that_decide_alone() -> None:
    model, forward = tiny_routed(), Forward(batch_size=8, tokens=1)
    alone = work(model, forward, keeping(0.5, 0.5))
    alike = work(model, forward, keeping(0.5, 0.5), ran=keeping(0.5, 0.5))
    assert alone.flops == alike.flops
    saved = alone.weight_bytes - alike.weight_bytes
    assert saved == pytest.approx(4 * 3 * (1 - 0.5**8 - 0.5) * (QO + MLP))


def test_without_keys_of_skipped_tokens_they_cost_nothing() -> None:
    model = tiny_routed(router=RouterConfig(kv="skip"))
    forward = Forward(tokens=1, cached=8)
    got, dense = work(model, forward, keeping(0.5, 1.0)), work(model, forward)
    assert got.linear == 2 * 3 * (0.5 * KV + 0.5 * QO + MLP)
    assert got.core == 4 * 3 * 0.5 * 32 * 0.5 * 9
    assert got.cache_bytes == 4 * 3 * 32 * 0.5 * (0.5 * 8 + 1)
    assert dense == work(tiny_routed(), forward)


def test_stand_ins_run_for_skipped_tokens_and_are_read_where_there_is_one() -> None:
    plain, stood_in = tiny_routed(), tiny_routed(router=RouterConfig(stand_in=4))
    forward = Forward(batch_size=2)
    without, got = (work(each, forward, keeping(0.75, 0.5)) for each in (plain, stood_in))
    size = 2 * 4 * 32 + 32
    assert got.routing - without.routing == 2 * 2 * 3 * (0.25 + 0.5) * size
    read = (1 - 0.75**2) + (1 - 0.5**2)
    assert got.weight_bytes - without.weight_bytes == pytest.approx(4 * 3 * read * size)


def test_skipping_saves_flops_in_prefill_and_bytes_in_decoding() -> None:
    model, forward = tiny_routed(), Forward(tokens=16)
    dense, run = work(model, forward), work(model, forward, keeping(0.5, 0.5))
    assert dense.flops > run.flops
    # In prefill each module has some token that runs it, so all weights are read.
    assert dense.bytes < run.bytes
    step = Forward(cached=16)
    dense, run = work(model, step), work(model, step, keeping(0.5, 0.5))
    assert dense.bytes > run.bytes


def test_costs_are_known_without_weights() -> None:
    model = add_routers(tiny_base().to("meta"))
    forward = Forward(batch_size=4, tokens=16)
    assert work(model, forward, keeping(0.5, 0.5)) == work(
        tiny_routed(), forward, keeping(0.5, 0.5)
    )


@pytest.mark.parametrize("kept", [11, 6, 0])
@torch.no_grad()
def test_the_flops_of_a_prefill_are_what_torch_counts(kept: int) -> None:
    model, tokens = routed("llama", "eager"), 11
    keep = torch.arange(tokens)[None] < kept
    rule = Forced(dict.fromkeys(SITES, keep))
    with use_rule(model, rule), FlopCounterMode(display=False) as counter:
        model(torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
    got = work(model, Forward(tokens=tokens), dict.fromkeys(SITES, kept / tokens))
    # Eager attention computes the half that causality leaves out, too, and of a router's two
    # logits only their difference is computed. This Llama has no biases.
    core = got.core * tokens / ((tokens + 1) / 2)
    margins = 2 * tokens * len(SITES) * 32
    # Some releases of transformers make the angles of rotary embeddings by a product.
    angles = sum(counter.get_flop_counts().get("LlamaForCausalLM.model.rotary_emb", {}).values())
    counted = counter.get_total_flops() - angles
    assert counted == round(got.linear + core + got.head + margins)


@layouts(more=("falcon", "gpt_bigcode"))
@torch.no_grad()
def test_the_cache_holds_what_is_counted(family: str) -> None:
    model = routed(family)
    with execution(model, "dense"):
        cache = model(torch.ones(2, 3, dtype=torch.long), use_cache=True).past_key_values
    counted = sum(layer_costs(layer).cached for layer in routed_layers(model))
    assert cache_bytes(cache) == 4 * 2 * 3 * counted


@pytest.mark.parametrize(("cached", "tokens"), [(0, 3), (0, 5), (0, 12), (2, 9), (7, 1), (4, 1)])
def test_a_window_cuts_off_what_is_attended_to_and_held(cached: int, tokens: int) -> None:
    model = routed("mistral")
    window = model.config.sliding_window
    assert window == 5
    seen = [min(cached + n, window) for n in range(1, tokens + 1)]
    got = work(model, Forward(tokens=tokens, cached=cached))
    assert got.core == pytest.approx(4 * 3 * 32 * sum(seen))
    held = min(cached, window - 1) + min(tokens, window - 1)
    assert got.cache_bytes == 4 * 3 * 32 * held


@layouts(more=("mistral", "qwen3_moe"))
@torch.no_grad()
def test_windows_are_those_of_the_masks_and_of_the_cache(family: str) -> None:
    model, tokens = routed(family, "eager"), 11
    layers, seen = routed_layers(model), []

    def watch(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        visible = given["attention_mask"] > -1e30
        seen.append(int(visible.sum(-1).max()))

    for layer in layers:
        attn = getattr(layer, layer.family.attn)
        attn.register_forward_pre_hook(watch, with_kwargs=True)
    with execution(model, "dense"):
        model(torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    windows = [layer_costs(layer).window for layer in layers]
    assert seen == [window or tokens for window in windows]
    cached = DynamicCache(config=model.config).layers
    assert windows == [getattr(layer, "sliding_window", None) for layer in cached]


def test_far_into_a_text_windows_make_skipping_attention_worth_less() -> None:
    full, sliding = tiny_routed("mistral", sliding_window=None), tiny_routed("mistral")
    ideals = []
    for cached in (0, 1_000):
        forward, keep = Forward(cached=cached), keeping(attn=0.5, mlp=1.0)
        for cost in ("flops", "bytes"):
            each = [
                getattr(work(model, forward), cost) / getattr(work(model, forward, keep), cost)
                for model in (full, sliding)
            ]
            ideals.append(each)
    assert all(whole == cut for whole, cut in ideals[:2])
    assert all(whole > 1.05 * cut for whole, cut in ideals[2:])


@torch.no_grad()
def test_a_cache_of_sliding_layers_holds_what_is_counted() -> None:
    model = routed("gemma2")
    with execution(model, "dense"):
        cache = model(torch.ones(2, 9, dtype=torch.long), use_cache=True).past_key_values
    sizes = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    costs = [layer_costs(layer) for layer in routed_layers(model)]
    assert sizes == [2 * each.cached * each.held(9) for each in costs]


def test_bytes_are_those_of_the_weights() -> None:
    model = tiny_routed()
    dense = work(model, Forward())
    inside = sum(
        p.numel() * p.element_size()
        for layer in routed_layers(model)
        for name, p in layer.named_parameters()
        if "router" not in name and "norm" not in name
    )
    assert dense.weight_bytes == inside + 4 * HEAD
    assert set(routers(model)) == set(EVERYWHERE)
