"""The stand-in: a small linear map that runs where a module is skipped (not in the paper).

A skipped module leaves the residual stream as it was. What the module would have added is in part
predictable at a small part of its cost: a product of rank r of the normalised stream, and a bias.

A stand-in is fitted to what its module adds, by least squares over a text, or trained.

Shapes: B batch, T query tokens, D hidden, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from skipgpt.routing.router import EPSILON, LinearMap, divided_by_rms
from skipgpt.system.sharded import assign, full_tensor

FLAT = 1e-6
"""Variance below which inputs, whose mean square is 1, differ by rounding alone."""


class StandIn(nn.Module):
    """`up @ down @ (x / rms(x)) + bias`, 2 D r + D parameters; zero until it is fitted or trained.

    Example:
        >>> StandIn(32, rank=4)(torch.ones(2, 7, 32)).abs().sum()
        tensor(0., grad_fn=<SumBackward0>)
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = LinearMap(hidden_size, rank, bias=False)
        self.up = LinearMap(rank, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, entering: Tensor) -> Tensor:
        """What to add [B, T, D] for the stream [B, T, D] that enters the skipped module."""
        wide = entering.to(self.down.weight.dtype)
        update: Tensor = self.up(self.down(rms_norm(wide, wide.shape[-1:], eps=EPSILON)))
        return update.to(entering.dtype)


class Moments:
    """Accumulates first and second moments of (input, output) pairs for least squares."""

    def __init__(self, hidden_size: int) -> None:
        self.count = 0
        wide = torch.float64
        self.read, self.update = torch.zeros(2, hidden_size, dtype=wide)
        self.xx, self.xy = torch.zeros(2, hidden_size, hidden_size, dtype=wide)

    def add(self, entering: Tensor, update: Tensor, counted: Tensor | None = None) -> None:
        """Count the streams [B, T, D] that entered a module and what it added to them.

        Only the tokens in `counted` [B, T] are counted; all where None.
        """
        read = divided_by_rms(entering).flatten(0, 1).float()
        out = update.flatten(0, 1).float()
        if counted is not None:
            read, out = read[counted.flatten()], out[counted.flatten()]
        self.count += len(read)
        # Products of one batch in float32 take half the time; sums over batches are float64.
        self.read += read.sum(0).cpu()
        self.update += out.sum(0).cpu()
        self.xx += (read.T @ read).cpu()
        self.xy += (read.T @ out).cpu()


@torch.no_grad()
def fit(stand_in: StandIn, moments: Moments, ridge: float = 1e-3, *, around: bool = False) -> None:
    """Reduced-rank regression: the stand-in of least squared error on what was counted.

    The full ridge solution W is projected onto the r directions of the output in which its
    predictions vary most (Izenman, 1975).

    Args:
        stand_in: changed in place.
        moments: of its inputs and of what it should add.
        ridge: penalty on W, relative to the mean square of an input.
        around: penalise the distance from the stand-in's current map instead.
    """
    mean_read, mean_update = moments.read / moments.count, moments.update / moments.count
    read = moments.xx / moments.count - torch.outer(mean_read, mean_read)
    cross = moments.xy / moments.count - torch.outer(mean_read, mean_update)
    spread = read.diagonal().mean()
    damping = ridge * spread * torch.eye(len(read), dtype=read.dtype)
    start = torch.zeros_like(cross)
    if around:
        start = (full_tensor(stand_in.up.weight) @ full_tensor(stand_in.down.weight)).T.to(cross)
    solution = start
    if spread > FLAT:  # else every token reads the same, and the bias is all there is to fit
        solution = start + torch.linalg.solve(read + damping, cross - read @ start)
    _, directions = torch.linalg.eigh(solution.T @ read @ solution)
    kept = directions[:, -stand_in.down.out_features :]
    assign(stand_in.down.weight, (solution @ kept).T)
    assign(stand_in.up.weight, kept)
    assign(stand_in.up.bias, mean_update - kept @ (kept.T @ (solution.T @ mean_read)))
