"""The few statistics that the analyses share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pearson(x: Tensor, y: Tensor) -> float:
    """Correlation of two [N], over places where both are numbers; nan where one never changes.

    Example:
        >>> round(pearson(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 4, 6])), 3)
        1.0
    """
    both = x.isfinite() & y.isfinite()
    x, y = x[both].double(), y[both].double()
    if len(x) < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    spread = (x.norm() * y.norm()).item()
    return (x @ y).item() / spread if spread > 1e-12 else float("nan")


def spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of the ranks of two [N]; equal values share their mean rank."""
    both = x.isfinite() & y.isfinite()
    return pearson(_ranks(x[both]), _ranks(y[both]))


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    means = ends - (counts.double() - 1) / 2
    ranks: Tensor = means[place]
    return ranks


def sliding_mean(values: Tensor, width: int) -> Tensor:
    """Means of `width` neighbours of [N], [N - width + 1]; of all where N is smaller."""
    width = max(1, min(width, len(values)))
    sums = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    return (sums[width:] - sums[:-width]) / width


def entropy_bits(share: Tensor) -> Tensor:
    """Bits of a yes or no that is yes with this probability; 1 at one half, 0 at 0 and 1."""
    p = share.double()
    nats: Tensor = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))
    return (nats / math.log(2)).abs()  # never -0
