"""Products of one-token steps: `decode_linear`, `decode_gate_up`.

A step of up to 64 sequences is bound by reading weights. Each program reads the weights of a few
outputs once, for all sequences, and none at all where every sequence skips: it reads the flags
itself, so the same launches serve any routes and a whole step can be captured as one CUDA graph.

Shapes: B sequences, K inputs, N outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipgpt.kernels.interface import Activation
from skipgpt.kernels.launch import (
    SMALLEST,
    Limits,
    as_bytes,
    limits,
    on,
    power_of_two,
)
from skipgpt.kernels.tiles import gate_up_tile, linear_tile


@triton.jit
def decode_linear_kernel(read, keep, weight, bias, stream, out, scale, B, N, K,
                         SEQUENCES: tl.constexpr, FEATURES: tl.constexpr,
                         DEPTH: tl.constexpr):  # fmt: skip
    """Where kept, read @ weight.T + bias; scaled and added to the stream where there is one."""
    sequences = tl.arange(0, SEQUENCES)
    kept = tl.load(keep + sequences, mask=sequences < B, other=0) != 0
    # No iteration at all where every sequence skips.
    end = K * tl.max(kept.to(tl.int32), 0)
    features = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    rows = read + sequences[:, None] * K
    total = linear_tile(rows, weight, bias, kept, features, N, K, end, SEQUENCES, FEATURES, DEPTH)
    places = sequences[:, None] * N + features[None, :]
    stored = (sequences < B)[:, None] & (features < N)[None, :]
    if stream is not None:
        before = tl.load(stream + places, mask=stored, other=0.0).to(tl.float32)
        total = before + tl.where(kept[:, None], total * scale, 0.0)
    else:
        stored = stored & kept[:, None]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=stored)


@triton.jit
def decode_gate_up_kernel(read, keep, gate, up, gate_bias, up_bias, out, B, N, K,
                          ACTIVATION: tl.constexpr, SEQUENCES: tl.constexpr,
                          FEATURES: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Where kept, activation(read @ gate.T + gate_bias) * (read @ up.T + up_bias)."""
    sequences = tl.arange(0, SEQUENCES)
    kept = tl.load(keep + sequences, mask=sequences < B, other=0) != 0
    if tl.max(kept.to(tl.int32), 0) == 0:
        return
    features = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    rows = read + sequences[:, None] * K
    product = gate_up_tile(rows, gate, up, gate_bias, up_bias, kept, features, N, K,
                           ACTIVATION, SEQUENCES, FEATURES, DEPTH)  # fmt: skip
    stored = kept[:, None] & (features < N)[None, :]
    places = sequences[:, None] * N + features[None, :]
    tl.store(out + places, product.to(out.dtype.element_ty), mask=stored)


def tiles(batch: int, dtype: torch.dtype, limit: Limits, weights: int) -> dict[str, int]:
    """Tiles: few outputs per program, so that there are enough programs, and much depth per step.

    `weights` is 1, or 2 for a gated MLP.
    """
    sequences, features = power_of_two(batch), SMALLEST
    depth = (512 if sequences == SMALLEST else 256) // dtype.itemsize
    each = (sequences + weights * features) * depth * dtype.itemsize
    return {
        "SEQUENCES": sequences,
        "FEATURES": features,
        "DEPTH": depth,
        "num_warps": 4,
        "num_stages": limit.stages(each),
    }


def decode_gate_up(
    read: Tensor,
    keep: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: Activation,
) -> Tensor:
    """`gate_up` of the sequences that keep: [B, N]; the rows of others are arbitrary.

    Args:
        read: [B, K].
        keep: [B] bool, which sequences run.
        gate: [N, K].
        up: as gate.
        gate_bias: [N], or None.
        up_bias: as gate_bias.
        activation: of the gate.
    """
    read, flags = read.contiguous(), as_bytes(keep.contiguous())
    (batch, inputs), outputs = read.shape, len(gate)
    out = read.new_empty(batch, outputs)
    chosen = tiles(batch, read.dtype, limits(read.device), weights=2)
    with on(read):
        decode_gate_up_kernel[(triton.cdiv(outputs, chosen["FEATURES"]),)](
            *(read, flags, gate, up, gate_bias, up_bias, out, batch, outputs, inputs),
            ACTIVATION=activation,
            **chosen,
        )
    return out


def decode_linear(
    read: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """A linear layer of the sequences that keep: [B, N]; the rows of others are arbitrary.

    Args:
        read: [B, K].
        keep: [B] bool, which sequences run.
        weight: [N, K].
        bias: [N], or None.
        stream: [B, N]. The result is then a new tensor: it plus `scale` times the product where a
            sequence keeps.
        scale: of what is added.
    """
    read, flags = read.contiguous(), as_bytes(keep.contiguous())
    (batch, inputs), outputs = read.shape, len(weight)
    stream = None if stream is None else stream.contiguous()
    out = read.new_empty(batch, outputs)
    chosen = tiles(batch, read.dtype, limits(read.device), weights=1)
    with on(read):
        decode_linear_kernel[(triton.cdiv(outputs, chosen["FEATURES"]),)](
            *(read, flags, weight, bias, stream, out, scale, batch, outputs, inputs), **chosen
        )
    return out
