import dataclasses

import pytest
import torch
from torch import Tensor

from cases import (
    CLOSE,
    CLOSE_GRADIENT,
    LEFT_PADDED,
    Inputs,
    SoftGate,
    every_batch,
    families,
    routed,
)
from reference import margin, reference_logits
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import DecisionRule, StraightThrough

LOOPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""The families that the per-token reference knows; for all, see the authors' forward."""


def soft(value: Tensor) -> Tensor:
    return torch.sigmoid(value)


def straight_through(value: Tensor) -> Tensor:
    smooth = torch.sigmoid(value)
    return (value > 0).float() + smooth - smooth.detach()


@every_batch
@families(LOOPED)
def test_gated_equals_a_per_token_reference_in_values_and_router_gradients(
    family: str, inputs: Inputs
) -> None:
    _compare(family, inputs, SoftGate(), soft)


@families(LOOPED)
def test_straight_through_gates_equal_the_reference(family: str) -> None:
    _compare(family, LEFT_PADDED, StraightThrough(), straight_through)


@pytest.mark.parametrize("reads", ["layer_input", "module_input"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_kind_of_router_equals_the_reference(
    family: str, reads: str, head: str, normalize: bool
) -> None:
    inputs = Inputs((2, 0), padded=True)
    _compare(family, inputs, SoftGate(), soft, input=reads, head=head, normalize=normalize)


def _compare(
    family: str, inputs: Inputs, rule: DecisionRule, gate_of: object, **router: object
) -> None:
    inputs = dataclasses.replace(inputs, tokens=8)  # the reference is slow, a window is 5
    model = routed(family, **router)
    config = model.model.layers[0].routing.config
    at = routers(model)
    weights = [p for each in at.values() for p in each.parameters()]

    def gate(layer: int, module: str, state: Tensor) -> Tensor:
        return gate_of(margin(at[layer, module], state, config.normalize))

    with use_rule(model, rule), execution(model, "gated"):
        logits = model(**inputs.given).logits
    actual = [row[real] for row, real in zip(logits, inputs.real, strict=True)]
    expected = [reference_logits(model, row, gate, config.input) for row in inputs.rows()]

    for row, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(row, wanted, **CLOSE)
    # A mean of squares: not symmetric in the tokens, so no gradient cancels by chance.
    grads = torch.autograd.grad(torch.cat(actual).square().mean(), weights)
    wanted = torch.autograd.grad(torch.cat(expected).square().mean(), weights)
    assert max(grad.abs().max() for grad in wanted) > 1e-3
    for grad, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, other, **CLOSE_GRADIENT)
