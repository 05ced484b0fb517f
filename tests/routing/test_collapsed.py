"""Routers of a layer in one product: the same margins, whatever happens to the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from skipgpt.config import RouterConfig
from skipgpt.routing.collapsed import CollapsedRouters
from skipgpt.routing.router import Router, build_router

HEADS = ["linear", "mlp"]
HIDDEN = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def pair(*heads: str) -> list[Router]:
    made = [build_router(RouterConfig(head=head), 32) for head in heads]
    for router in made:
        for parameter in router.parameters():
            nn.init.normal_(parameter)  # biases, too
    return made


def check(got: tuple[Tensor, ...], routers: list[Router]) -> None:
    for margin, router in zip(got, routers, strict=True):
        torch.testing.assert_close(margin, router.margin(HIDDEN), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("heads", [(a, b) for a in HEADS for b in HEADS])
def test_two_routers_together_answer_as_each_alone(heads: tuple[str, str]) -> None:
    routers = pair(*heads)
    check(CollapsedRouters().margins(HIDDEN, *routers), routers)


@torch.no_grad()
def test_a_token_alone_gets_the_same_margins_as_numbers() -> None:
    routers = pair("linear", "linear")
    collapsed, hidden = CollapsedRouters(), HIDDEN[:1, :1]
    for scale in (1.0, 0.2):
        expected = [router.margin(hidden, scale).item() for router in routers]
        assert collapsed.alone(hidden, *routers, scale=scale) == pytest.approx(expected, abs=2e-5)
    assert collapsed.alone(hidden, *pair("linear", "mlp")) is None
    with torch.inference_mode():
        routers = pair("linear", "linear")
        expected = [router.margin(hidden).item() for router in routers]
        assert collapsed.alone(hidden, *routers) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("scale", [0.3, torch.rand(2, 7, 1)])
def test_a_scale_is_that_of_the_input(scale: float | Tensor) -> None:
    routers = pair("linear", "linear")
    got = CollapsedRouters().margins(HIDDEN, *routers, scale=scale)
    for margin, router in zip(got, routers, strict=True):
        torch.testing.assert_close(margin, router.margin(HIDDEN, scale), rtol=1e-5, atol=2e-5)


def test_gradients_reach_both_routers() -> None:
    routers = pair("linear", "linear")
    sum(CollapsedRouters().margins(HIDDEN, *routers)).sum().backward()
    got = [router.weight.grad.clone() for router in routers]
    for router in routers:
        router.weight.grad = None
        router.margin(HIDDEN).sum().backward()
    for router, grad in zip(routers, got, strict=True):
        torch.testing.assert_close(grad, router.weight.grad)


@torch.no_grad()
def test_vectors_are_made_once() -> None:
    collapsed, routers = CollapsedRouters(), pair("linear", "linear")
    collapsed.margins(HIDDEN, *routers)
    made = collapsed._vectors
    collapsed.margins(HIDDEN, *routers)
    assert collapsed._vectors is made


def in_place(routers: list[Router]) -> list[Router]:
    routers[0].weight.mul_(2)
    return routers


def a_bias(routers: list[Router]) -> list[Router]:
    routers[1].bias[0] += 3
    return routers


def swapped_data(routers: list[Router]) -> list[Router]:
    routers[0].weight.data = torch.randn(2, 32)
    return routers


def loaded(routers: list[Router]) -> list[Router]:
    routers[0].load_state_dict(pair("linear")[0].state_dict())
    return routers


def others(routers: list[Router]) -> list[Router]:
    return pair("linear", "linear")


def copied(routers: list[Router]) -> list[Router]:
    routers = copy.deepcopy(routers)
    routers[0].weight.mul_(2)
    return routers


@pytest.mark.parametrize("change", [in_place, a_bias, swapped_data, loaded, others, copied])
@torch.no_grad()
def test_a_change_of_weights_is_seen(change: object) -> None:
    collapsed, routers = CollapsedRouters(), pair("linear", "linear")
    before = collapsed.margins(HIDDEN, *routers)
    routers = change(routers)
    after = collapsed.margins(HIDDEN, *routers)
    check(after, routers)
    assert not all(map(torch.equal, before, after))


def test_training_between_two_inferences_is_seen() -> None:
    collapsed, routers = CollapsedRouters(), pair("linear", "linear")
    optimizer = torch.optim.AdamW([p for r in routers for p in r.parameters()], lr=0.1)
    for _ in range(2):
        with torch.inference_mode():
            check(collapsed.margins(HIDDEN, *routers), routers)
        sum(collapsed.margins(HIDDEN, *routers)).sum().backward()
        optimizer.step()
    with torch.inference_mode():
        check(collapsed.margins(HIDDEN, *routers), routers)


def test_weights_made_in_inference_mode_are_read_anew() -> None:
    with torch.inference_mode():
        collapsed, routers = CollapsedRouters(), pair("linear", "linear")
        collapsed.margins(HIDDEN, *routers)
        routers[0].weight.mul_(2)
        check(collapsed.margins(HIDDEN, *routers), routers)
