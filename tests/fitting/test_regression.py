"""Gamma regression agrees with an independent minimiser of the same deviance."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from skipgpt.config import RouterConfig
from skipgpt.fitting.heads import write_router
from skipgpt.fitting.regression import Design, deviance
from skipgpt.routing.router import build_router


def _data(count: int = 2000, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(count, width, generator=generator)
    weight = torch.linspace(-0.8, 0.8, width)
    mean = torch.exp(read @ weight - 2.0)
    return read, mean * torch.randn(count, generator=generator).square(), weight


def test_it_finds_the_minimum_that_scipy_finds() -> None:
    read, cost, _ = _data()
    found = Design(read, ridges=(0.05,)).predict(cost)
    unit = cost.mean().item()
    inputs, costs = read.double().numpy(), cost.double().numpy() / unit

    def objective(w: np.ndarray) -> float:
        eta = inputs @ w[:-1] + w[-1]
        penalty = 0.05 * (w[:-1] ** 2).sum() + 1e-6 * w[-1] ** 2
        return float((costs * np.exp(-eta) + eta).mean() + penalty / 2)

    best = minimize(objective, np.zeros(7), method="BFGS", options={"gtol": 1e-8}).x
    # Scoring stops where a round gains less than 1e-5 nats per token.
    np.testing.assert_allclose(found.weight.numpy(), best[:-1], atol=6e-3)
    assert found.bias == pytest.approx(best[-1] + np.log(unit), abs=6e-3)
    at = torch.from_numpy(best).float()
    reached = deviance(read @ found.weight + found.bias - np.log(unit), cost / unit)
    assert reached <= deviance(read @ at[:-1] + at[-1], cost / unit) + 2e-5


def test_it_recovers_what_made_the_costs() -> None:
    read, cost, weight = _data(20000)
    found = Design(read, ridges=(1e-4,)).predict(cost)
    # Twenty standard errors of a weight would be 0.2.
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=0.05)
    assert found.bias == pytest.approx(-2.0, abs=0.05)
    assert found.explained > 0.3


def test_where_nothing_predicts_the_mean_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(300, 40, generator=generator)
    cost = torch.randn(300, generator=generator).square()
    found = Design(read, ridges=(1e-3,)).predict(cost)
    assert found.ridge is None
    assert not found.weight.any()
    assert found.bias == pytest.approx(cost.mean().log().item(), abs=1e-6)


def test_one_huge_cost_does_not_break_it() -> None:
    read, cost, _ = _data()
    cost[7] = 1e12
    found = Design(read).predict(cost)
    assert torch.isfinite(found.weight).all()
    assert np.isfinite(found.bias)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_routers_margin_is_the_logarithm_of_the_predicted_cost(
    head: Literal["linear", "mlp"],
) -> None:
    read, cost, weight = _data(20000, width=8)
    # Of a wider input, so that the head with a hidden layer has room for a linear map.
    read = torch.cat([read, torch.zeros(len(read), 24)], dim=1)
    weight = torch.cat([weight, torch.zeros(24)])
    torch.manual_seed(0)
    router = build_router(RouterConfig(head=head), 32)
    found = write_router(router, Design(read), cost)
    with torch.no_grad():
        margin = router.margin(read)
    truth = read @ weight - 2.0
    assert torch.corrcoef(torch.stack([margin, truth]))[0, 1] > 0.95
    assert (margin - truth).mean().abs() < 0.1
    assert found.explained > 0.9
