"""Linear layers of any make: `nn.Linear`, GPT-2's `Conv1D`, those of PEFT and of quantisers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def out_width(projection: Any) -> int:
    """Outputs of a linear layer, or of GPT-2's transposed one."""
    return int(projection.out_features if hasattr(projection, "out_features") else projection.nf)


def in_width(projection: Any) -> int:
    """Inputs of a linear layer, or of GPT-2's transposed one."""
    return int(projection.in_features if hasattr(projection, "in_features") else projection.nx)


def is_plain(projection: Any) -> bool:
    """Whether the layer is its weight and its bias and nothing else, so that it can be sliced."""
    kind = type(projection)
    bare = kind is nn.Linear or is_transposed(projection) or kind.__name__ == "FalconLinear"
    if not bare or type(weight := projection.weight) is not nn.Parameter:
        return False  # quantised weights are of another class, and may be packed
    # Offloaded weights are present only while the layer itself is called.
    return weight.is_floating_point() and not weight.is_meta


def is_transposed(projection: nn.Module) -> bool:
    """Whether the weight is [inputs, outputs], as GPT-2 has it."""
    return hasattr(projection, "nf")


def some_outputs(projection: Any, rows: Tensor, start: int, stop: int | None) -> Tensor:
    """The outputs `start` to `stop` of a linear layer."""
    weight = projection.weight.T if is_transposed(projection) else projection.weight
    bias = None if projection.bias is None else projection.bias[start:stop]
    return nn.functional.linear(rows, weight[start:stop], bias)


def has_widths(projection: Any) -> bool:
    """Whether the layer has its numbers of inputs and outputs as attributes."""
    return hasattr(projection, "out_features") or hasattr(projection, "nf")
