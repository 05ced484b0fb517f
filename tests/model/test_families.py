from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
from cases import BATCHES, CLOSE, LEFT_PADDED, base, every_family, every_layout, families, routed
from conftest import tiny_base
from reference import GATED, USUALLY_GATED
from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.model.attention.split import query_width
from skipgpt.model.families.table import FAMILIES, NEWEST, OLDEST, family_of
from skipgpt.model.sparsity import set_sparsity
from skipgpt.model.state import execution, record_routing, routing_state, use_rule
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers, train_only
from skipgpt.routing.calibration import CalibrationCurve
from skipgpt.routing.decision import KEEP_ALL, Threshold

SEE = "see docs/extending.md for what a row needs"


def test_every_row_has_a_tiny_model_and_every_tiny_model_a_row() -> None:
    assert {zoo.family_name(name) for name in zoo.ZOO} == set(FAMILIES)
    assert set(GATED) <= set(FAMILIES)
    assert all(name == row.model_type for name, row in FAMILIES.items())


@every_family
def test_a_model_is_of_its_family_with_and_without_routers(family: str) -> None:
    model, row = base(family), FAMILIES[zoo.family_name(family)]
    assert family_of(model) is row
    assert isinstance(model, row.model_class)
    assert len(routed_layers(add_routers(model))) == 3
    assert family_of(model) is row


@every_layout
def test_routed_classes_carry_the_familys_name_and_are_still_its_layers(family: str) -> None:
    layer_class = FAMILIES[zoo.family_name(family)].layer_class
    plain, model = base(family), routed(family)
    for layer in routed_layers(model):
        assert isinstance(layer, layer_class)
        assert type(layer).__name__ == f"Routed{layer_class.__name__}"
    # Device maps must keep a routed layer in one piece.
    expected = {
        f"Routed{name}" if name == layer_class.__name__ else name
        for name in plain._no_split_modules
    }
    assert set(model._no_split_modules) == expected
    assert f"Routed{layer_class.__name__}" in expected


@every_family
def test_the_layout_in_words_is_that_of_the_reference(family: str) -> None:
    row, name = FAMILIES[zoo.family_name(family)], zoo.family_name(family)
    gated_modules = GATED.get(name, USUALLY_GATED)
    has_norm_behind = any("norm" in each for each in gated_modules)
    assert ("post-norm" in row.layout or "sandwich" in row.layout) == has_norm_behind
    assert row.skips.endswith("attention, O; MLP")


def test_layouts_and_savings_in_words() -> None:
    words = {name: (FAMILIES[name].layout, FAMILIES[name].skips) for name in WORDS}
    assert words == WORDS


WORDS = {
    "llama": ("sequential, pre-norm", "Q, attention, O; MLP"),
    "gemma2": ("sequential, sandwich norms", "Q, attention, O; MLP"),
    "olmo2": ("sequential, post-norm", "Q, attention, O; MLP"),
    "cohere": ("parallel", "Q, attention, O; MLP"),
    "gpt_neox": ("parallel or sequential, fused", "attention, O; MLP"),
    "phi3": ("sequential, pre-norm, fused", "Q, attention, O; MLP"),
    "bloom": ("sequential, pre-norm, fused", "attention, O; MLP"),
}


def test_releases_are_in_order() -> None:
    from packaging.version import Version

    for row in FAMILIES.values():
        assert Version(OLDEST) <= Version(row.since or OLDEST) <= Version(NEWEST)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32}
    with pytest.raises(UnsupportedModelError) as caught:
        add_routers(_from_config("opt", **sizes))
    assert str(caught.value) == (
        "adding routers to a model of type 'opt': got a family without a row in "
        f"model/families/table.py; expected one of {', '.join(sorted(FAMILIES))}; {SEE}"
    )


def test_something_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="got a family without a row"):
        add_routers(nn.Linear(2, 2))


# A part is any that a row names: of norms the first that is there, of query projections one.
@pytest.mark.parametrize(
    ("family", "owner", "removed", "named"),
    [
        ("llama", "self_attn", ["q_proj", "k_proj"], "self_attn.q_proj, self_attn.k_proj"),
        ("llama", "self_attn", ["o_proj"], "self_attn.o_proj"),
        ("llama", "", ["mlp"], "mlp"),
        ("llama", "", ["input_layernorm"], "input_layernorm"),
        ("gemma2", "", ["post_feedforward_layernorm"], "post_feedforward_layernorm"),
        ("phi3", "self_attn", ["qkv_proj"], "self_attn.qkv_proj"),
        (
            "deepseek_v3",
            "self_attn",
            ["q_a_proj", "q_b_proj"],
            "self_attn.q_proj or q_a_proj or q_b_proj",
        ),
        (
            "falcon/new",
            "",
            ["ln_attn"],
            "ln_attn or input_layernorm",
        ),
    ],
)
def test_missing_parts_are_named_and_nothing_is_changed(
    family: str, owner: str, removed: list[str], named: str
) -> None:
    model, row = base(family), FAMILIES[zoo.family_name(family)]
    layers = [module for module in model.modules() if isinstance(module, row.layer_class)]
    for layer in layers:
        for name in removed:
            delattr(layer.get_submodule(owner), name)
    with pytest.raises(UnsupportedModelError) as caught:
        add_routers(model)
    assert str(caught.value) == (
        f"adding routers to a model of type {row.model_type!r}: got layers without {named}; "
        f"expected the parts that the family's row names; {SEE}"
    )
    assert routed_layers(model) == []


def test_a_part_set_to_none_is_missing_too() -> None:
    model = base("llama")
    model.model.layers[2].self_attn.v_proj = None  # one layer is enough
    with pytest.raises(UnsupportedModelError, match=r"layers without self_attn\.v_proj;"):
        add_routers(model)


@pytest.mark.parametrize(
    ("family", "changes", "unmet"),
    [
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm = True where the row needs False",
        ),
        (
            "falcon",
            {"hidden_dropout": 0.1},
            "config.hidden_dropout = 0.1 where the row needs 0.0",
        ),
        ("gpt2", {"add_cross_attention": True}, "crossattention = GPT2Attention where"),
    ],
)
def test_settings_that_a_row_does_not_cover_are_refused(
    family: str, changes: dict[str, object], unmet: str
) -> None:
    model = tiny_base(family, **changes)
    with pytest.raises(UnsupportedModelError) as caught:
        add_routers(model)
    assert f"got {unmet}" in str(caught.value)
    assert str(caught.value).endswith(f"expected what the family's row was written for; {SEE}")
    assert routed_layers(model) == []


class PackedLinear(nn.Module):
    """A projection in 8 bits, as quantisers put in the place of a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.scale = linear.weight.detach().abs().max() / 127
        weight = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight * self.scale, self.bias)


@families(["llama", "phi3", "gpt_neox", "deepseek_v3"])
@torch.no_grad()
def test_packed_projections_are_never_cut_open(family: str) -> None:
    model = base(family)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path.endswith(("proj", "query_key_value", "dense")):
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, PackedLinear(module))
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) >= 6
    add_routers(model)
    if family == "phi3":
        assert query_width(routed_layers(model)[0]) == 0
    for inputs in BATCHES.values():
        with execution(model, "gated"):
            expected = model(**inputs.given).logits[inputs.real]
        actual = model(**inputs.given).logits[inputs.real]
        torch.testing.assert_close(actual, expected, **CLOSE)


@families(["llama", "phi3"])
def test_a_projection_of_which_the_width_is_unknown_is_refused(family: str) -> None:
    """Something of the user's in the place of a linear layer."""
    model = base(family)
    for layer in model.model.layers:
        name = "q_proj" if family == "llama" else "qkv_proj"
        setattr(layer.self_attn, name, nn.Sequential(getattr(layer.self_attn, name)))
    with pytest.raises(UnsupportedModelError):
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


@every_layout
@torch.no_grad()
def test_a_bare_decoder_takes_routers_too(family: str) -> None:
    plain = base(family)
    decoder = add_routers(plain.base_model)
    with record_routing(decoder) as trace:
        decoder(**LEFT_PADDED.given)
    assert len(trace.steps[0].decisions) == 3
    assert torch.equal(trace.steps[0].token_mask, LEFT_PADDED.real)


def test_a_model_without_routers_is_refused_with_the_way_to_get_them() -> None:
    model = remove_routers(routed())
    for use in (
        lambda: record_routing(model).__enter__(),
        lambda: execution(model, "gated").__enter__(),
        lambda: use_rule(model, KEEP_ALL).__enter__(),
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
        "choosing the execution: got 'fast'; expected dense, gated, sparse or auto"
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


def _from_config(model_type: str, **changes: object) -> nn.Module:
    config = AutoConfig.for_model(model_type, **zoo.SMALL | changes)
    return AutoModelForCausalLM.from_config(config)


def test_rows_are_verified_on_the_releases_that_the_tests_are_pinned_to() -> None:
    root = Path(__file__).parents[2]
    for release, name in ((OLDEST, "constraints-lowest.txt"), (NEWEST, "constraints.txt")):
        assert f"transformers=={release}\n" in (root / name).read_text()
