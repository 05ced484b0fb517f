import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from cases import (
    BATCHES,
    CLOSE,
    LEFT_PADDED,
    ONE_ROW,
    SITES,
    Inputs,
    assert_same_gradients,
    conformance,
    every_layout,
    families,
    module_decisions,
    routed,
)
from skipgpt.model.families.family import Family
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import routed_layers, routers
from skipgpt.routing.decision import Forced, Site
from zoo import family_name


@conformance
@torch.no_grad()
def test_sparse_equals_gated_on_the_routers_own_routes(family: str) -> None:
    model = routed(family)
    for inputs in BATCHES.values():
        _compare_values(model, inputs)


@pytest.mark.parametrize("reads", ["layer_input", "module_input"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("normalize", [False, True])
@families(["llama", "gemma3_text", "gpt_neox", "bloom"])
@torch.no_grad()
def test_sparse_equals_gated_for_every_kind_of_router(
    family: str, reads: str, head: str, normalize: bool
) -> None:
    _compare_values(routed(family, input=reads, head=head, normalize=normalize), LEFT_PADDED)


@every_layout
@torch.no_grad()
def test_sparse_equals_gated_where_the_mlps_router_reads_what_the_mlp_reads(family: str) -> None:
    _compare_values(routed(family, input="module_input"), LEFT_PADDED)


@every_layout
@torch.no_grad()
def test_sparse_equals_gated_where_stand_ins_run_for_skipped_tokens(family: str) -> None:
    model = routed(family, stand_in=3)
    _compare_values(model, LEFT_PADDED)
    with_them = model(**LEFT_PADDED.given).logits
    for layer in routed_layers(model):
        layer.attn_stand_in = layer.mlp_stand_in = None
    moved = model(**LEFT_PADDED.given).logits - with_them
    assert moved[LEFT_PADDED.real].abs().max() > 1e-2


@pytest.mark.parametrize(
    "router",
    [{"input": "module_input"}, {"kv": "skip"}, {"decides": "layer"}, {"decides": "sequence"}],
    ids=str,
)
@pytest.mark.parametrize("stand_in", [0, 3])
@families(["llama", "gemma3_text", "gpt_neox", "cohere2"])
@torch.no_grad()
def test_sparse_equals_gated_for_every_kind_of_decision(
    family: str, router: dict[str, str], stand_in: int
) -> None:
    _compare_values(routed(family, stand_in=stand_in, **router), LEFT_PADDED)


@every_layout
@torch.no_grad()
def test_sparse_equals_gated_however_unevenly_rows_are_kept(family: str) -> None:
    model, inputs = routed(family), BATCHES["three-rows"]
    for shape in ("uneven", "one row keeps all", "one row skips all", "one token"):
        with use_rule(model, Forced(_routes(inputs, shape))):
            with execution(model, "gated"):
                expected = model(**inputs.given).logits
            torch.testing.assert_close(model(**inputs.given).logits, expected, **CLOSE)


@conformance
def test_sparse_equals_gated_in_every_parameters_gradient(family: str) -> None:
    model = routed(family)
    for router in routers(model).values():
        router.requires_grad_(False)
    for inputs in (ONE_ROW, LEFT_PADDED):
        expected, actual = (_gradients(model, inputs, kind) for kind in ("gated", "sparse"))
        assert_same_gradients(actual, expected)


@every_layout
def test_sparse_equals_gated_in_every_gradient_of_base_and_stand_ins(family: str) -> None:
    model = routed(family, stand_in=3)
    for router in routers(model).values():
        router.requires_grad_(False)
    expected, actual = (_gradients(model, LEFT_PADDED, kind) for kind in ("gated", "sparse"))
    assert sum("_stand_in." in name for name in expected) == 3 * 2 * len(routed_layers(model))
    assert all(grad.abs().max() > 0 for name, grad in expected.items() if "_stand_in." in name)
    assert_same_gradients(actual, expected)


@every_layout
def test_sparse_equals_gated_in_values_and_gradients_of_low_rank_updates(family: str) -> None:
    """As stage `lora` trains: frozen base, small updates on the projections of attention."""
    model = _with_lora(family)
    expected, actual = (_gradients(model, LEFT_PADDED, kind) for kind in ("gated", "sparse"))
    assert len(expected) >= 2 * 2 * 3
    assert all(grad.abs().max() > 0 for grad in expected.values())
    assert_same_gradients(actual, expected)
    with torch.no_grad():
        _compare_values(model, LEFT_PADDED)


def _with_lora(family: str) -> nn.Module:
    row, model = FAMILIES[family_name(family)], routed(family)
    projections = [row.fused] if row.fused else [*row.query, *row.key_value]
    within = "|".join([*projections, row.output])
    adapter = LoraConfig(
        r=2,
        target_modules=rf".*\.{row.attn}\.({within})",
        init_lora_weights=False,
        fan_in_fan_out=_is_conv1d(model, row),
    )
    return get_peft_model(model, adapter).eval()


def _is_conv1d(model: nn.Module, row: Family) -> bool:
    """Whether projections are GPT-2's, with transposed weights."""
    projection = getattr(getattr(routed_layers(model)[0], row.attn), row.output)
    return not isinstance(projection, nn.Linear)


def _routes(inputs: Inputs, shape: str) -> dict[Site, Tensor]:
    keep = {site: torch.rand(inputs.ids.shape) < 0.5 for site in SITES}
    for each in keep.values():
        if shape == "uneven":
            each[1] = torch.arange(inputs.tokens) == 4
        elif shape == "one row keeps all":
            each[0] = True
        elif shape == "one row skips all":
            each[2] = False
        else:
            each[:] = False
            each[1, 7] = True
    return keep


def _compare_values(model: nn.Module, inputs: Inputs) -> None:
    with execution(model, "gated"), record_routing(model) as trace:
        expected = model(**inputs.given).logits
    keeps = torch.stack([each.keep for each in module_decisions(trace.steps[0].decisions)])
    assert 0.1 < keeps.float().mean() < 0.9, "nothing to compare: routes are all alike"
    actual = model(**inputs.given).logits
    torch.testing.assert_close(actual[inputs.real], expected[inputs.real], **CLOSE)


def _gradients(model: nn.Module, inputs: Inputs, kind: str) -> dict[str, Tensor]:
    model.zero_grad()
    with execution(model, kind):
        model(**inputs.given).logits[inputs.real].square().sum().backward()
    # A module that ran for no token has no gradient where it did not run, zero where it was gated.
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
