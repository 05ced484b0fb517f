"""The linear map that routers and stand-ins are made of.

It is no `nn.Linear`, on purpose. Quantisers (bitsandbytes, torchao, torch's own) and PEFT's
`all-linear` look for that class and replace it; decisions would be rounded, or fail.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LinearMap(nn.Module):
    """`x W^T + b`, with the parameters and the initialisation of `nn.Linear`; b may be left out.

    Example:
        >>> LinearMap(32, 4)(torch.zeros(2, 7, 32)).shape
        torch.Size([2, 7, 4])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.bias: nn.Parameter
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if bias:
            bound = 1 / math.sqrt(in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows […, in_features] to […, out_features]."""
        return nn.functional.linear(rows, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes, as `nn.Linear` prints them."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
