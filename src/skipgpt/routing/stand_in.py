"""The stand-in: a small linear map that runs where a module is skipped (not in the paper).

A skipped module leaves the residual stream as it was. What the module would have added is in part
predictable at a small part of its cost: a product of rank r of the normalised stream, and a bias.

Shapes: B batch, T query tokens, D hidden, r rank.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import rms_norm

from skipgpt.routing.linear_map import LinearMap
from skipgpt.routing.router import EPSILON


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
