"""Routers of a layer in one product: the same margins."""

from __future__ import annotations

import accelerate
import pytest
import torch
from torch import Tensor, nn

from skipgpt.config import RouterConfig
from skipgpt.routing.router import (
    LinearMap,
    LinearRouter,
    Router,
    build_router,
    margins,
    margins_as_numbers,
)

HEADS = ["linear", "mlp"]
HIDDEN = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def pair(*heads: str) -> list[Router]:
    made = [build_router(RouterConfig(head=head), 32) for head in heads]
    for router in made:
        for parameter in router.parameters():
            nn.init.normal_(parameter)  # biases, too
    return made


def check(got: tuple[Tensor, ...], routers: list[Router], scale: float | Tensor = 1.0) -> None:
    for margin, router in zip(got, routers, strict=True):
        logits = router(HIDDEN * scale)
        expected = logits[..., 0] - logits[..., 1]
        torch.testing.assert_close(margin, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3, torch.rand(2, 7, 1)])
@pytest.mark.parametrize("heads", [(a, b) for a in HEADS for b in HEADS])
def test_two_routers_together_answer_as_each_alone(
    heads: tuple[str, str], scale: float | Tensor
) -> None:
    routers = pair(*heads)
    check(margins(HIDDEN, *routers, scale=scale), routers, scale)


@pytest.mark.parametrize("tokens", [1, 5])
@torch.no_grad()
def test_few_tokens_get_the_same_margins_as_numbers(tokens: int) -> None:
    routers, hidden = pair("linear", "linear"), torch.randn(tokens, 1, 32)
    scales = torch.rand(tokens, 1, 1)
    numbers = margins_as_numbers(hidden, *routers, scales=scales.flatten().tolist())
    for got, expected in zip(numbers, margins(hidden, *routers, scale=scales), strict=True):
        assert got == pytest.approx(expected.flatten().tolist(), abs=2e-5)


def test_there_are_no_numbers_where_a_head_is_not_linear() -> None:
    assert margins_as_numbers(HIDDEN[:, :1], *pair("linear", "mlp"), scales=[1.0, 1.0]) is None


class Bounded(LinearRouter):
    """A linear head with a bound, in a `forward` of its own."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.to(self.weight.dtype)).tanh()


class BoundedMap(LinearMap, Router):
    """The same, of a linear map, as a new head in `HEADS` may be."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 2)

    @property
    def last(self) -> LinearMap:
        return self

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).tanh()


@pytest.mark.parametrize("head", [Bounded, BoundedMap])
@torch.no_grad()
def test_a_head_with_weights_at_the_top_is_asked_by_its_own_forward(head: type[Router]) -> None:
    routers = [head(32), head(32)]
    logits = [
        torch.tanh(torch.nn.functional.linear(HIDDEN, router.weight, router.bias))
        for router in routers
    ]
    expected = [each[..., 0] - each[..., 1] for each in logits]
    for got, router, each in zip(margins(HIDDEN, *routers), routers, expected, strict=True):
        torch.testing.assert_close(got, each)
        torch.testing.assert_close(router.margin(HIDDEN), each)
    assert margins_as_numbers(HIDDEN[:, :1], *routers, scales=[1.0, 1.0]) is None


def test_gradients_reach_both_routers() -> None:
    routers = pair("linear", "linear")
    sum(margins(HIDDEN, *routers)).sum().backward()
    got = [router.weight.grad.clone() for router in routers]
    for router in routers:
        router.weight.grad = None
        router.margin(HIDDEN).sum().backward()
    for router, grad in zip(routers, got, strict=True):
        torch.testing.assert_close(grad, router.weight.grad)


@pytest.mark.parametrize("heads", [(a, b) for a in HEADS for b in HEADS])
@torch.no_grad()
def test_weights_may_be_offloaded(heads: tuple[str, str]) -> None:
    routers = pair(*heads)
    expected = margins(HIDDEN, *routers)
    for router in routers:
        accelerate.cpu_offload(router, execution_device=torch.device("cpu"))
    assert next(routers[0].parameters()).is_meta
    for got, each in zip(margins(HIDDEN, *routers), expected, strict=True):
        torch.testing.assert_close(got, each, rtol=1e-5, atol=2e-5)
    assert margins_as_numbers(HIDDEN[:, :1], *routers, scales=[1.0, 1.0]) is None


@pytest.mark.parametrize("heads", [(a, b) for a in HEADS for b in HEADS])
@torch.no_grad()
def test_autocast_rounds_no_margin(heads: tuple[str, str]) -> None:
    routers = pair(*heads)
    expected = margins(HIDDEN, *routers)
    with torch.autocast("cpu", torch.bfloat16):
        for got, each in zip(margins(HIDDEN, *routers), expected, strict=True):
            assert torch.equal(got, each)
        for router, each in zip(routers, expected, strict=True):
            torch.testing.assert_close(router.margin(HIDDEN), each, rtol=1e-5, atol=2e-5)
        assert margins_as_numbers(HIDDEN[:, :1], *routers, scales=[1.0, 1.0]) is None


@torch.no_grad()
def test_routers_of_fewer_bits_are_not_read_as_numbers() -> None:
    routers = [router.to(torch.bfloat16) for router in pair("linear", "linear")]
    assert margins_as_numbers(HIDDEN[:, :1], *routers, scales=[1.0, 1.0]) is None
