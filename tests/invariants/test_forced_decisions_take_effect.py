from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from cases import Inputs, every_family, module_decisions, routed
from skipgpt.model import sparse
from skipgpt.model.trace import deciding, execution, record_routing
from skipgpt.routing.decision import Forced, Site

SITES = [Site(layer, module) for layer in range(3) for module in ("attn", "mlp")]


@pytest.mark.parametrize("rows", [1, 3])
@every_family
@torch.no_grad()
def test_decisions_are_what_was_forced(family: str, rows: int) -> None:
    model, inputs = routed(family), Inputs((0,) * rows, padded=False)
    routes = {site: torch.rand(inputs.ids.shape) < 0.5 for site in SITES}
    with deciding(model, Forced(routes)), record_routing(model) as trace:
        model(inputs.ids)
    seen = [each.keep for each in module_decisions(trace.steps[0].decisions)]
    assert all(torch.equal(keep, routes[site]) for keep, site in zip(seen, SITES, strict=True))


@every_family
@torch.no_grad()
def test_a_skipped_token_enters_no_query_attention_output_or_mlp(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = routed(family), Inputs((0,), padded=False)
    routes = {site: torch.rand(inputs.ids.shape) < 0.5 for site in SITES}
    ran = _count_rows(model, monkeypatch)

    with deciding(model, Forced(routes)):
        model(inputs.ids)

    for layer in range(3):
        attn, mlp = (int(routes[layer, module].sum()) for module in ("attn", "mlp"))
        assert 0 < attn < inputs.tokens
        assert 0 < mlp < inputs.tokens
        expected = {"q_proj": attn, "attention": attn, "o_proj": attn, "mlp": mlp}
        expected |= {"k_proj": inputs.tokens, "v_proj": inputs.tokens}
        assert {name: ran[layer, name] for name in expected} == expected


@every_family
@torch.no_grad()
def test_rows_of_a_batch_are_packed_to_the_longest(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = routed(family), Inputs((0, 0, 0), padded=False)
    keep = torch.arange(inputs.tokens) < torch.tensor([[2], [5], [0]])
    ran = _count_rows(model, monkeypatch)

    with deciding(model, Forced(dict.fromkeys(SITES, keep))):
        model(inputs.ids)

    for layer in range(3):
        # Attention runs on a rectangle, 3 rows of 5; the MLP on just the 7 kept tokens.
        assert [ran[layer, name] for name in ("q_proj", "attention", "o_proj")] == [15, 15, 15]
        assert ran[layer, "mlp"] == 7
        assert ran[layer, "k_proj"] == ran[layer, "v_proj"] == 33


@every_family
@torch.no_grad()
def test_a_skipped_decode_step_computes_keys_and_values_only(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = routed(family), Inputs((0, 0), padded=False)
    cache = DynamicCache(config=model.config)
    model(inputs.ids, past_key_values=cache)
    ran = _count_rows(model, monkeypatch)

    with deciding(model, Forced(default=False)):
        model(inputs.ids[:, :1], past_key_values=cache)

    assert ran == {(layer, name): 2 for layer in range(3) for name in ("k_proj", "v_proj")}


@every_family
@torch.no_grad()
def test_gated_runs_every_token(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = routed(family), Inputs((0,), padded=False)
    ran = _count_rows(model, monkeypatch)
    with deciding(model, Forced(default=False)), execution(model, "gated"):
        model(inputs.ids)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp")
    assert ran == {(layer, name): 11 for layer in range(3) for name in names}


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@pytest.mark.parametrize("site", SITES, ids=str)
@torch.no_grad()
def test_static_removal_removes_just_that_module(site: Site, kind: str) -> None:
    """Compared with a base model whose module's last weights are zero."""
    model, inputs = routed("llama"), Inputs((3, 0, 6), padded=True)
    with deciding(model, Forced.without([site])), execution(model, kind):
        actual = model(**inputs.given).logits
    layer = model.model.layers[site.layer]
    last = layer.self_attn.o_proj if site.module == "attn" else layer.mlp.down_proj
    last.weight.zero_()
    last.bias.zero_()
    with execution(model, "dense"):
        expected = model(**inputs.given).logits
    torch.testing.assert_close(
        actual[inputs.real],
        expected[inputs.real],
        rtol=0,
        atol=5e-5,  # see cases.CLOSE
    )


def _count_rows(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, str]]:
    """Counts, from now on, the tokens that enter each part of each layer."""
    ran: Counter[tuple[int, str]] = Counter()

    def counting(layer: int, name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            ran[layer, name] += args[0].shape[:-1].numel()

        return hook

    for n, layer in enumerate(model.model.layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, name).register_forward_pre_hook(counting(n, name))
        layer.mlp.register_forward_pre_hook(counting(n, "mlp"))

    original = sparse._attention_function

    def counted_function(attn: nn.Module) -> object:
        def run(module: nn.Module, queries: Tensor, *args: object, **kwargs: object) -> object:
            ran[module.layer_idx, "attention"] += queries.shape[0] * queries.shape[2]
            return original(attn)(module, queries, *args, **kwargs)

        return run

    monkeypatch.setattr(sparse, "_attention_function", counted_function)
    return ran
