"""One model at several budgets: for one forward, for a block, from now on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CLOSE, ONE_ROW, base, checkpoint_activations, every_layout, routed
from skipgpt import at_sparsity, remove_routers, set_sparsity
from skipgpt.config import ALL_LINEAR, LoraStage
from skipgpt.errors import ConfigError
from skipgpt.model.lora import with_lora
from skipgpt.model.state import record_routing, routing_state
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.routing.decision import Threshold

IDS = ONE_ROW.given["input_ids"]
CURVES = Curves.of_modules(CalibrationCurve(((0.0, -float("inf")), (0.3, -0.2), (0.6, 0.2))))


def calibrated(family: str = "llama") -> nn.Module:
    model = routed(family)
    routing_state(model).curves = CURVES
    return model


def skipped(model: nn.Module, **given: float) -> tuple[Tensor, float]:
    with record_routing(model) as trace:
        logits = model(IDS, **given).logits
    return logits, trace.sparsity()


@every_layout
@torch.no_grad()
def test_a_forward_takes_a_sparsity_of_its_own(family: str) -> None:
    model = calibrated(family)
    usual, at_zero = skipped(model), skipped(model, sparsity=0.0)
    assert at_zero[1] == 0.0
    for sparsity in (0.3, 0.6):
        given = skipped(model, sparsity=sparsity)
        assert torch.equal(skipped(model)[0], usual[0])
        with at_sparsity(model, sparsity):
            inside = skipped(model)
        assert torch.equal(given[0], inside[0])
        assert given[1] == inside[1] > 0
    set_sparsity(model, 0.6)
    assert torch.equal(skipped(model)[0], given[0])


@torch.no_grad()
def test_no_sparsity_leaves_the_one_that_is_set() -> None:
    model = calibrated()
    set_sparsity(model, 0.6)
    usual = model(IDS).logits
    assert torch.equal(model(IDS, sparsity=None).logits, usual)
    assert torch.equal(model(IDS, sparsity=None, budget=None).logits, usual)


def test_gradients_are_those_of_the_sparsity_also_where_layers_are_recomputed() -> None:
    plain, checkpointed = calibrated().train(), calibrated().train()
    plain(IDS, sparsity=0.6, labels=IDS).loss.backward()
    checkpoint_activations(checkpointed, use_reentrant=False)
    with pytest.raises(ConfigError, match="activation checkpointing, which recomputes"):
        checkpointed(IDS, sparsity=0.6, labels=IDS, use_cache=False)
    assert routing_state(checkpointed).rule == Threshold()
    with at_sparsity(checkpointed, 0.6):
        checkpointed(IDS, labels=IDS, use_cache=False).loss.backward()
    grads = [{n: p.grad for n, p in m.named_parameters()} for m in (plain, checkpointed)]
    for name, grad in grads[0].items():
        if grad is not None:
            torch.testing.assert_close(grads[1][name], grad)
    with torch.no_grad():  # nothing is recomputed
        checkpointed(IDS, sparsity=0.6)


@torch.no_grad()
def test_a_block_holds_for_generate() -> None:
    model = calibrated()
    with at_sparsity(model, 0.6), record_routing(model) as trace:
        model.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert trace.sparsity() > 0
    assert routing_state(model).rule == Threshold()


def test_a_sparsity_that_is_refused_changes_nothing() -> None:
    model = routed()
    for wrong in (0.3, 1.5, "much"):
        with pytest.raises(ConfigError):
            model(IDS, sparsity=wrong)
        routing_state(model).curves = CURVES
    with pytest.raises(ConfigError, match="end of the calibrated curve"):
        model(IDS, sparsity=0.9)
    state = routing_state(model)
    assert (state.rule, state.outer_rule) == (Threshold(), None)


def test_a_forward_that_fails_puts_the_dial_back() -> None:
    model = calibrated()
    with pytest.raises(IndexError):
        model(torch.full((1, 3), 10_000), sparsity=0.6)
    assert routing_state(model).rule == Threshold()


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "gpt_neox", "phi3"])
@torch.no_grad()
def test_lora_around_the_model_passes_it_on(family: str) -> None:
    model = calibrated(family)
    plain = skipped(model, sparsity=0.6)
    wrapped = with_lora(model, LoraStage(targets=ALL_LINEAR)).eval()
    again = skipped(wrapped, sparsity=0.6)
    torch.testing.assert_close(again[0], plain[0], **CLOSE)
    assert again[1] == plain[1]


def test_without_routers_there_is_no_dial() -> None:
    model = remove_routers(routed())
    plain = base()
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert not any(module._forward_hooks for module in model.modules())
