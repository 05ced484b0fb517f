import pytest
import torch
from torch import Tensor, nn

from cases import LEFT_PADDED, checkpoint_activations, every_layout, layouts, routed
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import train_only
from skipgpt.routing.budget import budget_loss
from skipgpt.routing.decision import DecisionRule, GumbelSample, StraightThrough


@layouts(but={"phimoe"})  # whose choice of experts is random in training mode
def test_non_reentrant_checkpointing_equals_none_for_model_and_budget_gradients(
    family: str,
) -> None:
    _compare(family, StraightThrough())


@every_layout
def test_checkpointing_changes_nothing_with_gates_that_are_drawn(family: str) -> None:
    _compare(family, GumbelSample(2.0))


def _compare(family: str, rule: DecisionRule) -> None:
    plain_loss, plain = _train_step(routed(family), rule)
    model = routed(family)
    checkpoint_activations(model, use_reentrant=False)
    loss, grads = _train_step(model, rule)

    # The same operations in the same order: equal to the last bit.
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, plain, strict=True))
    assert max(grad.abs().max() for grad in grads) > 1e-3


def test_the_budget_alone_reaches_every_router_under_checkpointing() -> None:
    model = routed().train()
    checkpoint_activations(model, use_reentrant=False)
    weights = train_only(model, "router")
    with use_rule(model, StraightThrough()), execution(model, "gated"):
        with record_routing(model) as trace:
            model(**LEFT_PADDED.given, use_cache=False)
        grads = torch.autograd.grad(trace.steps[0].sparsity(), weights)
    assert all(grad.abs().max() > 0 for grad in grads)


def test_recomputing_a_layer_records_no_further_step() -> None:
    model = routed().train()
    checkpoint_activations(model, use_reentrant=False)
    train_only(model, "router")
    with (
        use_rule(model, StraightThrough()),
        execution(model, "gated"),
        record_routing(model) as trace,
    ):
        for count in (1, 2):
            model(**LEFT_PADDED.given, use_cache=False).logits.mean().backward()
            assert len(trace.steps) == count
    assert all(len(step.decisions) == 3 for step in trace.steps)


def test_reentrant_checkpointing_is_refused_with_the_way_out() -> None:
    model = routed().train()
    checkpoint_activations(model, use_reentrant=True)
    with pytest.raises(ConfigError) as caught, record_routing(model):
        pytest.fail("the block must not be entered")
    assert str(caught.value) == (
        "recording decisions for training: got reentrant activation checkpointing; "
        "expected the non-reentrant kind; the other returns wrong gradients silently; "
        'enable it with {"use_reentrant": False}'
    )


@torch.no_grad()
def test_reentrant_checkpointing_is_no_matter_in_evaluation_mode() -> None:
    model = routed()
    checkpoint_activations(model, use_reentrant=True)
    with record_routing(model) as trace:
        model(**LEFT_PADDED.given)
    assert len(trace.steps) == 1


def _train_step(model: nn.Module, rule: DecisionRule) -> tuple[Tensor, list[Tensor]]:
    """Loss and router gradients of one step of stage `router`."""
    model.train()
    weights = train_only(model, "router")
    torch.manual_seed(7)
    with use_rule(model, rule), execution(model, "gated"):
        with record_routing(model) as trace:
            logits = model(**LEFT_PADDED.given, use_cache=False).logits
        loss = logits[LEFT_PADDED.real].square().mean() / 10
        loss = loss + 8 * budget_loss(trace.steps[0].sparsity(), target=0.25)
        return loss.detach(), list(torch.autograd.grad(loss, weights))
