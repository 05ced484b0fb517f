from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from cases import (
    CLOSE,
    LEFT_PADDED,
    ONE_ROW,
    SITES,
    Inputs,
    base,
    every_layout,
    module_decisions,
    routed,
)
from reference import hooked_logits
from skipgpt.model.attention.split import query_width
from skipgpt.model.families.family import has
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import Forced, Site


@pytest.mark.parametrize("rows", [1, 3])
@every_layout
@torch.no_grad()
def test_decisions_are_what_was_forced(family: str, rows: int) -> None:
    model, inputs = routed(family), Inputs((0,) * rows, padded=False)
    routes = {site: torch.rand(inputs.ids.shape) < 0.5 for site in SITES}
    with use_rule(model, Forced(routes)), record_routing(model) as trace:
        model(inputs.ids)
    seen = [each.keep for each in module_decisions(trace.steps[0].decisions)]
    assert all(torch.equal(keep, routes[site]) for keep, site in zip(seen, SITES, strict=True))


@every_layout
@torch.no_grad()
def test_a_skipped_token_enters_no_query_attention_output_or_mlp(
    family: str,
) -> None:
    model, inputs = routed(family), ONE_ROW
    routes = {site: torch.rand(inputs.ids.shape) < 0.5 for site in SITES}
    ran = _count_rows(model)

    with use_rule(model, Forced(routes)):
        model(inputs.ids)

    for layer in range(3):
        attn, mlp = (int(routes[layer, module].sum()) for module in ("attn", "mlp"))
        assert 0 < attn < inputs.tokens
        assert 0 < mlp < inputs.tokens
        expected = dict.fromkeys(_queries(model), attn) | {"mlp": mlp}
        expected |= dict.fromkeys(_keys_and_values(model), inputs.tokens)
        assert {name: ran[layer, name] for name in expected} == expected


# Queries of a batch whose rows keep 2, 5 and 0 tokens: 7 where attention is plainly causal; 15, a
# rectangle of 3 rows, under the mask of a sliding window or of a family without `sdpa`.
PLAIN = ("llama", "olmo2", "gpt2", "gpt_neox", "deepseek_v3")
MIXED = ("qwen2", "gemma3_text", "cohere2")
QUERIES = {name: {7} for name in PLAIN} | {name: {7, 15} for name in MIXED}


@every_layout
@torch.no_grad()
def test_rows_of_a_batch_run_no_more_than_their_masks_ask_for(family: str) -> None:
    model, inputs = routed(family), Inputs((0, 0, 0), padded=False)
    keep = torch.arange(inputs.tokens) < torch.tensor([[2], [5], [0]])
    ran = _count_rows(model)

    with use_rule(model, Forced(dict.fromkeys(SITES, keep))):
        model(inputs.ids)

    queries = {ran[layer, name] for layer in range(3) for name in _queries(model)}
    assert queries == QUERIES.get(family, {15})
    for layer in range(3):
        assert ran[layer, "mlp"] == 7
        assert {ran[layer, name] for name in _keys_and_values(model)} <= {33}


@every_layout
@torch.no_grad()
def test_a_skipped_decode_step_computes_keys_and_values_only(
    family: str,
) -> None:
    model, inputs = routed(family), Inputs((0, 0), padded=False)
    cache = DynamicCache(config=model.config)
    model(inputs.ids, past_key_values=cache)
    ran = _count_rows(model)

    with use_rule(model, Forced(default=False)):
        model(inputs.ids[:, :1], past_key_values=cache)

    assert ran == {(layer, name): 2 for layer in range(3) for name in _keys_and_values(model)}


@every_layout
@torch.no_grad()
def test_gated_runs_every_token(family: str) -> None:
    model, inputs = routed(family), ONE_ROW
    ran = _count_rows(model)
    with use_rule(model, Forced(default=False)), execution(model, "gated"):
        model(inputs.ids)
    assert set(ran.values()) == {11}
    assert set(ran) >= {(layer, name) for layer in range(3) for name in (*_queries(model), "mlp")}


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@pytest.mark.parametrize("site", SITES, ids=str)
@torch.no_grad()
def test_static_removal_removes_just_that_module(site: Site, kind: str) -> None:
    model, plain = routed("llama"), base("llama")
    with use_rule(model, Forced.without([site])), execution(model, kind):
        actual = model(**LEFT_PADDED.given).logits

    def gate(layer: int, module: str, state: Tensor) -> Tensor:
        return torch.full(state.shape[:-1], float((layer, module) != site))

    expected = hooked_logits(plain, LEFT_PADDED.given, gate)
    torch.testing.assert_close(actual[LEFT_PADDED.real], expected[LEFT_PADDED.real], **CLOSE)


def _queries(model: nn.Module) -> list[str]:
    """Projections that run for kept tokens only."""
    layer = routed_layers(model)[0]
    names = (*(() if layer.family.fused else layer.family.query), layer.family.output)
    return [name for name in names if has(getattr(layer, layer.family.attn), name)]


def _keys_and_values(model: nn.Module) -> list[str]:
    """Projections that run for every token, if they run as modules: a slice does not."""
    layer = routed_layers(model)[0]
    if not layer.family.fused:
        return list(layer.family.key_value)
    return [] if query_width(layer) else [layer.family.fused]


def _count_rows(model: nn.Module) -> Counter[tuple[int, str]]:
    """Counts, from now on, the tokens that enter each part of each layer."""
    ran: Counter[tuple[int, str]] = Counter()

    def counting(layer: int, name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            ran[layer, name] += args[0].shape[:-1].numel()

        return hook

    for n, layer in enumerate(routed_layers(model)):
        attn = getattr(layer, layer.family.attn)
        for name in (*_queries(model), *_keys_and_values(model)):
            getattr(attn, name).register_forward_pre_hook(counting(n, name))
        getattr(layer, layer.family.mlp).register_forward_pre_hook(counting(n, "mlp"))
    return ran
