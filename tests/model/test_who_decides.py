"""Decisions of their own: of each module, of whole layers, of whole sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases import (
    BATCHES,
    CLOSE,
    LAYOUTS,
    LEFT_PADDED,
    Inputs,
    SoftGate,
    every_layout,
    families,
    routed,
)
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import routed_layers, train_only
from skipgpt.model.trace import Step
from skipgpt.routing.decision import (
    DecisionRule,
    Forced,
    GumbelSample,
    RandomRoutes,
    Site,
    StraightThrough,
    Threshold,
)

RULES = [Threshold(), GumbelSample(5.0), StraightThrough(), RandomRoutes(0.5)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


def recorded(model: torch.nn.Module, inputs: Inputs, rule: DecisionRule, kind: str) -> Step:
    with use_rule(model, rule), execution(model, kind), record_routing(model) as trace:
        model(**inputs.given)
    return trace.steps[0]


# Layers.


@every_rule
@pytest.mark.parametrize("kind", ["gated", "sparse"])
@pytest.mark.parametrize("reads", ["layer_input", "module_input"])
def test_in_a_layer_attention_and_mlp_always_decide_alike(
    reads: str, kind: str, rule: DecisionRule
) -> None:
    step = recorded(routed(decides="layer", input=reads), LEFT_PADDED, rule, kind)
    for attn, mlp in zip(step.keeps("attn"), step.keeps("mlp"), strict=True):
        assert torch.equal(attn, mlp)
    for attn, mlp in zip(step.gates("attn"), step.gates("mlp"), strict=True):
        assert torch.equal(attn, mlp)
    kept = torch.stack(step.keeps()).float().mean()
    assert 0.1 < kept < 0.9


@every_layout
@torch.no_grad()
def test_a_layer_decides_as_its_attention_router_says(family: str) -> None:
    model = routed(family, decides="layer")
    apart = routed(family)
    first = recorded(model, LEFT_PADDED, Threshold(), "sparse").decisions[0]
    other = recorded(apart, LEFT_PADDED, Threshold(), "sparse").decisions[0]
    assert torch.equal(first.mlp.margin, first.attn.margin)
    torch.testing.assert_close(first.attn.margin, other.attn.margin, **CLOSE)


def test_a_layers_gradient_is_that_of_both_its_modules() -> None:
    model = routed(decides="layer")
    train_only(model, "router")
    with use_rule(model, SoftGate()), execution(model, "gated"):
        model(**LEFT_PADDED.given).logits.square().mean().backward()
    for layer in routed_layers(model):
        assert layer.attn_router.weight.grad.abs().max() > 0
        assert layer.mlp_router.weight.grad is None


def test_the_sparsity_of_whole_layers_counts_both_modules() -> None:
    model = routed(decides="layer")
    with use_rule(model, Forced({Site(1, "attn"): False})), record_routing(model) as trace:
        model(**LEFT_PADDED.given)
    assert trace.sparsity() == trace.sparsity("attn") == trace.sparsity("mlp")
    assert trace.sparsity() == pytest.approx(1 / 3)


# Sequences.


@every_rule
@pytest.mark.parametrize("kind", ["gated", "sparse"])
def test_of_a_sequence_all_tokens_decide_alike(kind: str, rule: DecisionRule) -> None:
    model = routed(decides="sequence")
    steps = [recorded(model, BATCHES["three-rows"], rule, kind) for _ in range(4)]
    for step in [*steps, recorded(model, LEFT_PADDED, rule, kind)]:
        for keep, gate in zip(step.keeps(), step.gates(), strict=True):
            assert torch.equal(keep, keep[:, :1].expand_as(keep))
            assert torch.equal(gate, gate[:, :1].expand_as(gate))
    # Rows and modules differ nevertheless.
    kept = torch.stack([keep[:, 0] for step in steps for keep in step.keeps()])
    assert kept.any()
    assert not kept.all()


@families(LAYOUTS)
@torch.no_grad()
def test_a_sequence_decides_by_the_mean_margin_of_its_real_tokens(family: str) -> None:
    sequences, tokens = routed(family, decides="sequence"), routed(family)
    of_rows = recorded(sequences, LEFT_PADDED, Threshold(), "sparse").decisions[0].attn
    of_tokens = recorded(tokens, LEFT_PADDED, Threshold(), "sparse").decisions[0].attn
    means = torch.stack(
        [row[real].mean() for row, real in zip(of_tokens.margin, LEFT_PADDED.real, strict=True)]
    )
    torch.testing.assert_close(of_rows.margin[:, 0], means, **CLOSE)
    assert torch.equal(of_rows.keep[:, 0], means > 0)


@every_layout
@torch.no_grad()
def test_what_stands_in_the_padding_does_not_sway_a_sequence(family: str) -> None:
    model, given = routed(family, decides="sequence"), dict(LEFT_PADDED.given)
    expected = model(**given).logits[LEFT_PADDED.real]
    given["input_ids"] = torch.where(LEFT_PADDED.real, given["input_ids"], 99)
    torch.testing.assert_close(model(**given).logits[LEFT_PADDED.real], expected, **CLOSE)


def test_every_real_token_of_a_sequence_gets_its_share_of_the_gradient() -> None:
    model = routed(decides="sequence")
    margins: list[Tensor] = []

    def rule(margin: Tensor, site: Site) -> object:
        margins.append(margin)
        margin.retain_grad()
        return SoftGate()(margin, site)

    with use_rule(model, rule), execution(model, "gated"):
        model(**LEFT_PADDED.given).logits[LEFT_PADDED.real].square().mean().backward()
    assert all(margin.shape == (3, 1) for margin in margins)
    assert all(margin.grad.abs().min() > 0 for margin in margins)
