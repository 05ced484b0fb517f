"""Products with kept rows only: `gate_up`, `row_linear`, `add_linear`.

The grid is as large as for all rows. The first programs share the tiles of the rows that are
there, and the others return at once. Rows are gathered as they are loaded, and written or added to
their places as they are stored; there is no separate packing step.

Shapes: M rows, K inputs, N outputs. Sums are float32; float32 inputs keep full precision.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipgpt.kernels.interface import Activation
from skipgpt.kernels.launch import (
    Limits,
    limits,
    on,
    power_of_two,
)
from skipgpt.kernels.tiles import gate_up_tile, linear_tile, tile_of


@triton.jit
def linear_kernel(read, sources, weight, bias, stream, out, targets, count, scale, N, K,
                  ROWS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr,
                  GROUP: tl.constexpr):  # fmt: skip
    """out[targets[n]] = read[sources[n]] @ weight.T + bias; scaled and added where `stream` is."""
    kept = tl.load(count)
    row_tiles, feature_tiles = tl.cdiv(kept, ROWS), tl.cdiv(N, FEATURES)
    program = tl.program_id(0)
    if program >= row_tiles * feature_tiles:
        return
    row_tile, feature_tile = tile_of(program, row_tiles, feature_tiles, GROUP)

    packed = row_tile * ROWS + tl.arange(0, ROWS)
    there = packed < kept
    source = packed if sources is None else tl.load(sources + packed, mask=there, other=0)
    features = feature_tile * FEATURES + tl.arange(0, FEATURES)
    rows = read + source.to(tl.int64)[:, None] * K
    total = linear_tile(rows, weight, bias, there, features, N, K, K, ROWS, FEATURES, DEPTH)
    target = tl.load(targets + packed, mask=there, other=0).to(tl.int64)
    places = target[:, None] * N + features[None, :]
    stored = there[:, None] & (features < N)[None, :]
    if stream is not None:
        before = tl.load(stream + places, mask=stored, other=0.0).to(tl.float32)
        total = before + total * scale
    tl.store(out + places, total.to(out.dtype.element_ty), mask=stored)


@triton.jit
def gate_up_kernel(read, sources, gate, up, gate_bias, up_bias, out, count, N, K,
                   ACTIVATION: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
                   DEPTH: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """out[n] = activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias), x = read[sources[n]]."""
    kept = tl.load(count)
    row_tiles, feature_tiles = tl.cdiv(kept, ROWS), tl.cdiv(N, FEATURES)
    program = tl.program_id(0)
    if program >= row_tiles * feature_tiles:
        return
    row_tile, feature_tile = tile_of(program, row_tiles, feature_tiles, GROUP)

    packed = row_tile * ROWS + tl.arange(0, ROWS)
    there = packed < kept
    source = tl.load(sources + packed, mask=there, other=0)
    features = feature_tile * FEATURES + tl.arange(0, FEATURES)
    rows = read + source.to(tl.int64)[:, None] * K
    product = gate_up_tile(rows, gate, up, gate_bias, up_bias, there, features, N, K,
                           ACTIVATION, ROWS, FEATURES, DEPTH)  # fmt: skip
    places = packed.to(tl.int64)[:, None] * N + features[None, :]
    stored = there[:, None] & (features < N)[None, :]
    tl.store(out + places, product.to(out.dtype.element_ty), mask=stored)


def tiles(rows: int, dtype: torch.dtype, limit: Limits, weights: int) -> dict[str, int]:
    """Tiles for at most so many rows, each multiplied with 1 weight, or with 2 of a gated MLP."""
    # Float32 has no tensor cores at full precision, and twice the bytes.
    largest, depth = (64, 32) if dtype == torch.float32 else (128, 64)
    height = power_of_two(rows, largest=largest)
    # Before Hopper two accumulators of this size do not fit into registers.
    width = largest if weights == 1 or limit.has_warpgroup_mma else largest // 2
    each = (height + weights * width) * depth * dtype.itemsize
    return {
        "ROWS": height,
        "FEATURES": width,
        "DEPTH": depth,
        "GROUP": 8,
        "num_warps": 8 if height * largest >= 128 * 128 else 4,
        "num_stages": limit.stages(each),
    }


def gate_up(
    read: Tensor,
    rows: Tensor,
    count: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Gated MLP up to its down projection, of some rows, packed: [M, N].

    It is `activation(x @ gate.T) * (x @ up.T)`. Rows behind the count are arbitrary.

    Args:
        read: [M, K].
        rows: [M] int32, which rows run, packed.
        count: [1] int32, how many.
        gate: [N, K].
        up: as gate.
        gate_bias: [N], or None.
        up_bias: as gate_bias.
        activation: of the gate.
    """
    read = read.contiguous()
    (most, inputs), outputs = read.shape, len(gate)
    out = read.new_empty(most, outputs)
    chosen = tiles(most, read.dtype, limits(read.device), weights=2)
    with on(read):
        gate_up_kernel[_grid(most, outputs, chosen)](
            *(read, rows, gate, up, gate_bias, up_bias, out, count, outputs, inputs),
            ACTIVATION=activation,
            **chosen,
        )
    return out


def row_linear(
    read: Tensor, rows: Tensor, count: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A linear layer of some rows, which stay in their places: [M, N]; other rows are arbitrary.

    Args:
        read: [M, K].
        rows: [M] int32, which rows run, packed.
        count: [1] int32, how many.
        weight: [N, K].
        bias: [N], or None.
    """
    out = read.new_empty(len(read), len(weight))
    _linear(read, rows, weight, bias, None, out, rows, count, 1.0)
    return out


def add_linear(
    stream: Tensor,
    given: Tensor,
    sources: Tensor | None,
    rows: Tensor,
    count: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """The stream plus `scale` times a linear layer of some rows, as a new tensor.

    Args:
        stream: [M, N].
        given: [M, K], what is multiplied.
        sources: [M] int32, which row of `given` is for each of `rows`; None where it is packed.
        rows: [M] int32, which rows run, packed.
        count: [1] int32, how many.
        weight: [N, K].
        bias: [N], or None.
        scale: of what is added.
    """
    stream = stream.contiguous()
    out = stream.clone()
    _linear(given, sources, weight, bias, stream, out, rows, count, scale)
    return out


def _linear(
    read: Tensor,
    sources: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor | None,
    out: Tensor,
    targets: Tensor,
    count: Tensor,
    scale: float,
) -> None:
    read = read.contiguous()
    (most, inputs), outputs = read.shape, len(weight)
    chosen = tiles(most, read.dtype, limits(read.device), weights=1)
    with on(read):
        linear_kernel[_grid(most, outputs, chosen)](
            *(read, sources, weight, bias, stream, out, targets, count, scale, outputs, inputs),
            **chosen,
        )


def _grid(rows: int, outputs: int, chosen: dict[str, int]) -> tuple[Any]:
    return (triton.cdiv(rows, chosen["ROWS"]) * triton.cdiv(outputs, chosen["FEATURES"]),)
