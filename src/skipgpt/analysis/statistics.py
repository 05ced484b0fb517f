"""The few statistics that the analyses share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d


def pearson(x: Tensor, y: Tensor) -> float:
    """Pearson correlation of two [N] where both are finite; nan if one is constant.

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
    """Rank correlation of two [N]; equal values share their mean rank."""
    both = x.isfinite() & y.isfinite()
    return pearson(_ranks(x[both]), _ranks(y[both]))


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    means = ends - (counts.double() - 1) / 2
    ranks: Tensor = means[place]
    return ranks


def sliding_mean(values: Tensor, width: int) -> Tensor:
    """Means [N - width + 1] of `width` neighbours of [N]; of all if N is smaller."""
    width = max(1, min(width, len(values)))
    return avg_pool1d(values.double()[None], width, stride=1)[0]


def entropy_bits(share: Tensor) -> Tensor:
    """Entropy in bits of a Bernoulli variable; 1 at probability one half, 0 at 0 and 1."""
    p = share.double()
    nats: Tensor = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))
    return (nats / math.log(2)).abs()  # never -0
