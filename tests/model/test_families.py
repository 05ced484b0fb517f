"""Every family is a row."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
from cases import LEFT_PADDED, base, every_family, every_layout, routed
from reference import GATED, USUALLY_GATED
from skipgpt.errors import UnsupportedModelError
from skipgpt.model.families.table import FAMILIES, NEWEST, OLDEST, family_of
from skipgpt.model.state import record_routing
from skipgpt.model.surgery import add_routers, routed_layers, train_only


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
        f"model/families/table.py; expected one of {', '.join(sorted(FAMILIES))}; "
        "see docs/extending.md for what a row needs"
    )


def test_something_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="got a family without a row"):
        add_routers(nn.Linear(2, 2))


@every_layout
@torch.no_grad()
def test_a_bare_decoder_takes_routers_too(family: str) -> None:
    plain = base(family)
    decoder = add_routers(plain.base_model)
    with record_routing(decoder) as trace:
        decoder(**LEFT_PADDED.given)
    assert len(trace.steps[0].decisions) == 3
    assert torch.equal(trace.steps[0].token_mask, LEFT_PADDED.real)


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
