"""Models that cannot be routed are refused with why, and left as they are."""

import pytest
import torch
from torch import Tensor, nn

import zoo
from cases import BATCHES, CLOSE, KEEP_ALL, base, families, routed
from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.model.attention.split import query_width
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.sparsity import set_sparsity
from skipgpt.model.state import execution, record_routing, routing_state, use_rule
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.routing.decision import Threshold
from tiny import tiny_base

SEE = "see docs/extending.md for what a row needs"


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
    curve = CalibrationCurve(((0.0, -float("inf")), (0.2, 1.0), (0.4, 3.0)))
    state.curves = Curves.of_modules(curve)
    set_sparsity(model, 0.3)
    assert state.rule == Threshold(pytest.approx(2.0))
    set_sparsity(model, 0)
    assert state.rule == KEEP_ALL
    with pytest.raises(ConfigError) as caught:
        set_sparsity(model, 0.5)
    assert str(caught.value) == (
        "setting the sparsity in modules: got 0.5; expected at most 0.40 of the modules, the end "
        "of the calibrated curve"
    )
    assert state.rule == KEEP_ALL
