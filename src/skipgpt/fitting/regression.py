"""Predicts a cost from what a router reads: Gamma regression with a logarithmic link.

A cost is a square, so it is positive, and its spread grows with its mean: the Gamma family. Its
deviance, up to what does not depend on the prediction, is per token

    cost / exp(eta) + eta        with  eta = read . weight + bias,

which gives the rare large costs their weight. Least squares on logarithms does not: it predicts the
median, and routers fitted by it are no better than a static choice. Under this link Fisher scoring
weighs every token equally, so the expected Hessian is the Gram matrix of the inputs: one Cholesky
factor per ridge serves all iterations and every module that reads the same.

Shapes: N tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (0.01, 0.03, 0.1, 0.3)
"""Weight penalties per token; held-out deviance chooses one."""
HELD_OUT = 0.2
ROUNDS = 50


@dataclass(frozen=True)
class CostModel:
    """Linear predictor of the logarithm of a cost: `read @ weight + bias`.

    Attributes:
        weight: [D]; zeros where a constant predicts better.
        bias: a number.
        ridge: the chosen penalty; None for a constant.
        explained: held-out deviance, in nats per token, that it explains beyond the constant.
    """

    weight: Tensor
    bias: float
    ridge: float | None
    explained: float


class Design:
    """The inputs of a layer's routers, with what regressions on them share.

    Inputs are [N, D], one row per token, in the order of the text; `ridges` are the
    penalties to choose from.
    """

    def __init__(self, read: Tensor, ridges: Sequence[float] = RIDGES) -> None:
        self.inputs = torch.cat([read.float(), read.new_ones(len(read), 1).float()], dim=1)
        self.ridges = ridges
        self.fitted = len(read) - int(HELD_OUT * len(read))
        head, tail = self.inputs[: self.fitted], self.inputs[self.fitted :]
        self._part = head.T @ head
        self._whole = self._part + tail.T @ tail
        self._factors: dict[tuple[bool, float], Tensor] = {}

    def predict(self, cost: Tensor) -> CostModel:
        """Regress costs [N] on the inputs; use the mean alone if no ridge predicts better.

        The last fifth of the tokens chooses the ridge; the chosen one is fitted to all.
        """
        head, tail = cost[: self.fitted], cost[self.fitted :]
        unit = head.mean()
        best, explained = None, 0.0
        constant = deviance(self.inputs.new_zeros(len(tail)), tail / unit)
        for ridge in self.ridges:
            weight = self._solve(head / unit, ridge, whole=False)
            gain = constant - deviance(self.inputs[self.fitted :] @ weight, tail / unit)
            if gain > explained:
                best, explained = ridge, gain
        unit = cost.mean()
        if best is None:
            return CostModel(self.inputs.new_zeros(self.inputs.shape[1] - 1), unit.log().item(),
                             None, 0.0)  # fmt: skip
        weight = self._solve(cost / unit, best, whole=True)
        return CostModel(weight[:-1], (weight[-1] + unit.log()).item(), best, explained)

    def _solve(self, cost: Tensor, ridge: float, whole: bool) -> Tensor:
        """Return weights and bias [D + 1] of least penalised deviance for costs of mean 1."""
        inputs = self.inputs[: len(cost)]
        penalty = self._penalty(ridge, len(cost))
        factor = self._factor(ridge, whole)
        weight, eta = torch.zeros_like(penalty), inputs.new_zeros(len(cost))
        value = _penalised(eta, cost, penalty, weight)
        for _ in range(ROUNDS):
            score = inputs.T @ (cost * torch.exp(-eta) - 1) - penalty * weight
            step = torch.cholesky_solve(score[:, None], factor).squeeze(1)
            along, length = inputs @ step, 1.0
            while (
                after := _penalised(eta + length * along, cost, penalty, weight + length * step)
            ) >= value:
                length /= 2
                if length < 1e-3:
                    return weight
            weight, eta = weight + length * step, eta + length * along
            gained, value = value - after, after
            if gained < 1e-5 * len(cost):
                break
        return weight

    def _factor(self, ridge: float, whole: bool) -> Tensor:
        if (whole, ridge) not in self._factors:
            gram, count = (self._whole, len(self.inputs)) if whole else (self._part, self.fitted)
            self._factors[whole, ridge] = torch.linalg.cholesky(
                gram + torch.diag(self._penalty(ridge, count))
            )
        return self._factors[whole, ridge]

    def _penalty(self, ridge: float, count: int) -> Tensor:
        """Return the penalty of each weight, [D + 1]; the bias is almost unpenalised."""
        penalty = self.inputs.new_full((self.inputs.shape[1],), ridge * count)
        penalty[-1] = 1e-6 * count
        return penalty


def deviance(eta: Tensor, cost: Tensor) -> float:
    """Mean of `cost / exp(eta) + eta` over tokens [N]: half the Gamma deviance plus a constant."""
    return (cost * torch.exp(-eta) + eta).mean().item()


def _penalised(eta: Tensor, cost: Tensor, penalty: Tensor, weight: Tensor) -> float:
    total = (cost * torch.exp(-eta) + eta).sum() + (penalty * weight.square()).sum() / 2
    return total.item()
