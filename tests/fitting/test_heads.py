"""What is fitted is what the router says."""

from __future__ import annotations

import pytest
import torch

from skipgpt.config import RouterConfig
from skipgpt.fitting.heads import write_router
from skipgpt.fitting.regression import Design
from skipgpt.routing.router import HEADS, build_router


def test_the_margin_of_a_linear_head_is_the_predicted_logarithm_of_the_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(4096, 8, generator=generator)
    truth = 2 + 0.7 * read[:, 0] - 0.3 * read[:, 1]
    # A Gamma cost whose mean is exp(truth): of shape 1, an exponential one.
    cost = truth.exp() * torch.empty(4096).exponential_(generator=generator)
    router = build_router(RouterConfig(), 8)
    found = write_router(router, Design(read), cost)
    margin = router.margin(read[None])[0]
    torch.testing.assert_close(margin, read @ found.weight + found.bias, rtol=1e-5, atol=1e-5)
    # Derived without our regression: what made the costs.
    torch.testing.assert_close(margin, truth, rtol=0, atol=0.25)
    logits = router(read[None])[0]
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])


@pytest.mark.parametrize("head", HEADS)
def test_a_cost_that_nothing_predicts_becomes_its_mean(head: str) -> None:
    generator = torch.Generator().manual_seed(1)
    read = torch.randn(2048, 8, generator=generator)
    cost = 5 * torch.empty(2048).exponential_(generator=generator)
    router = build_router(RouterConfig(head=head), 8)
    write_router(router, Design(read), cost)
    margin = router.margin(read[None])[0]
    assert margin.mean().item() == pytest.approx(cost.mean().log().item(), abs=0.1)
    assert margin.std() < 0.2
