import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cases import base, every_family, routed
from conftest import tiny_base
from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.model.families import FAMILIES, family_of
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers, train_only
from skipgpt.model.trace import (
    deciding,
    execution,
    record_routing,
    routing_state,
    set_sparsity,
)
from skipgpt.routing.calibration import CalibrationCurve
from skipgpt.routing.decision import KEEP_ALL, Threshold

KNOWN = "gemma2, gemma3_text, llama, mistral, qwen2, qwen3"


def gpt2() -> nn.Module:
    config = AutoConfig.for_model("gpt2", vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    return AutoModelForCausalLM.from_config(config)


@every_family
def test_a_model_is_of_its_family_with_and_without_routers(family: str) -> None:
    model = base(family)
    assert family_of(model) is FAMILIES[family]
    assert len(routed_layers(add_routers(model))) == 3


@every_family
def test_routed_classes_carry_the_familys_name_and_are_still_its_layers(family: str) -> None:
    layer_class = FAMILIES[family].load("DecoderLayer")
    model = routed(family)
    for layer in routed_layers(model):
        assert isinstance(layer, layer_class)
        assert type(layer).__name__ == f"Routed{layer_class.__name__}"
    # Device maps must keep a routed layer in one piece.
    assert f"Routed{layer_class.__name__}" in model._no_split_modules
    assert layer_class.__name__ not in model._no_split_modules


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        add_routers(gpt2())
    assert str(caught.value) == (
        "adding routers to a model of type 'gpt2': got a family without a row in "
        f"model/families.py; expected one of {KNOWN}; see docs/extending.md for what a row needs"
    )


def test_something_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="got a family without a row"):
        add_routers(nn.Linear(2, 2))


def test_fused_projections_are_refused_by_the_names_of_the_missing_parts() -> None:
    model = tiny_base("llama")
    for layer in model.model.layers:
        attn = layer.self_attn
        attn.qkv_proj = nn.Linear(32, 64, bias=False)
        del attn.q_proj, attn.k_proj, attn.v_proj
    with pytest.raises(UnsupportedModelError) as caught:
        add_routers(model)
    assert str(caught.value) == (
        "adding routers to a model of type 'llama': got layers without self_attn.q_proj, "
        "self_attn.k_proj, self_attn.v_proj (fused projections?); expected separate q_proj, "
        "k_proj, v_proj, o_proj and the norms of the family's row; see docs/extending.md for "
        "what a row needs"
    )
    assert routed_layers(model) == []


def test_a_missing_norm_is_named() -> None:
    model = tiny_base("gemma2")
    for layer in model.model.layers:
        del layer.post_feedforward_layernorm
    with pytest.raises(UnsupportedModelError, match="layers without post_feedforward_layernorm"):
        add_routers(model)


def test_a_model_without_decoder_layers_is_refused() -> None:
    model = tiny_base("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(UnsupportedModelError) as caught:
        add_routers(model)
    assert str(caught.value) == (
        "adding routers to a model of type 'llama': got no LlamaDecoderLayer in it; expected a "
        "decoder with a language-model head, as AutoModelForCausalLM loads it"
    )


def test_adding_routers_twice_is_refused_and_changes_nothing() -> None:
    model = routed()
    before = dict(model.named_parameters())
    with pytest.raises(ConfigError) as caught:
        add_routers(model)
    assert str(caught.value) == (
        "adding routers: got a model that has routers; call remove_routers first"
    )
    assert all(before[name] is p for name, p in model.named_parameters())


def test_a_bare_decoder_takes_routers_too() -> None:
    torch.manual_seed(0)
    decoder = AutoModel.from_config(tiny_base("llama").config).eval()
    add_routers(decoder)
    with record_routing(decoder) as trace:
        decoder(torch.ones(1, 5, dtype=torch.long))
    assert len(trace.steps[0].decisions) == 3


def test_a_model_without_routers_is_refused_with_the_way_to_get_them() -> None:
    model = remove_routers(routed())
    for use in (
        lambda: record_routing(model).__enter__(),
        lambda: execution(model, "gated").__enter__(),
        lambda: deciding(model, KEEP_ALL).__enter__(),
        lambda: set_sparsity(model, 0.25),
        lambda: routing_state(model),
    ):
        with pytest.raises(ConfigError) as caught:
            use()
        assert str(caught.value) == (
            "looking for routers: got a LlamaForCausalLM without any; "
            "call skipgpt.add_routers(model) or skipgpt.load(checkpoint) first"
        )


def test_an_unknown_execution_is_refused() -> None:
    with pytest.raises(ConfigError) as caught, execution(routed(), "fast"):
        pytest.fail("the block must not be entered")
    assert str(caught.value) == (
        "choosing the execution: got 'fast'; expected dense, gated or sparse"
    )


def test_the_budget_dial_needs_calibration_and_stays_on_its_curve() -> None:
    model = routed()
    with pytest.raises(ConfigError) as caught:
        set_sparsity(model, 0.25)
    assert str(caught.value) == (
        "setting the sparsity: got a model that was never calibrated; "
        "train it with `skipgpt train`, or call skipgpt.calibrate(model, blocks)"
    )

    state = routing_state(model)
    state.curve = CalibrationCurve(((0.0, -float("inf")), (0.2, 1.0), (0.4, 3.0)))
    set_sparsity(model, 0.3)
    assert state.rule == Threshold(pytest.approx(2.0))
    set_sparsity(model, 0)
    assert state.rule == KEEP_ALL
    with pytest.raises(ConfigError) as caught:
        set_sparsity(model, 0.5)
    assert str(caught.value) == (
        "setting the sparsity: got 0.5; expected at most 0.40, the end of the calibrated curve"
    )
    assert state.rule == KEEP_ALL


def test_training_routers_freezes_the_base_and_the_other_way_round() -> None:
    model = routed()
    trained = train_only(model, "router")
    assert len(trained) == 12
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "router" in n
    }
    assert train_only(model, "lora") == []
    assert not any(p.requires_grad for p in model.parameters())
