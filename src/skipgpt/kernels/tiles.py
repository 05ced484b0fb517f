"""Device functions that the packed and the decode kernels share: one tile of a product.

Tile names: ROWS x FEATURES of a result, DEPTH of the summed dimension per step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(gate, ACTIVATION: tl.constexpr):
    """Apply an activation, by its name, to float32."""
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        # tanh(x) = 2 sigmoid(2 x) - 1
        return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@triton.jit
def linear_tile(rows, weight, bias, there, features, N, K, end, ROWS: tl.constexpr,
                FEATURES: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Float32 tile of rows @ weight.T + bias.

    `rows` are pointers, those not in `there` count as zero; `end` is K, or 0 to skip the product.
    """
    wanted = features < N
    depth = tl.arange(0, DEPTH)
    columns = weight + features.to(tl.int64)[None, :] * K
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    for start in range(0, end, DEPTH):
        inside = start + depth < K
        left = tl.load(
            rows + (start + depth)[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        right = tl.load(
            columns + (start + depth)[:, None], mask=inside[:, None] & wanted[None, :], other=0.0
        )
        total = tl.dot(left, right, total, input_precision="ieee")
    return with_bias(total, bias, features, wanted)


@triton.jit
def gate_up_tile(rows, gate, up, gate_bias, up_bias, there, features, N, K,
                 ACTIVATION: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
                 DEPTH: tl.constexpr):  # fmt: skip
    """Float32 tile of activation(rows @ gate.T + gate_bias) * (rows @ up.T + up_bias)."""
    wanted = features < N
    depth = tl.arange(0, DEPTH)
    columns = features.to(tl.int64)[None, :] * K
    opened = tl.zeros((ROWS, FEATURES), tl.float32)
    raised = tl.zeros((ROWS, FEATURES), tl.float32)
    for start in range(0, K, DEPTH):
        inside = start + depth < K
        left = tl.load(
            rows + (start + depth)[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        places = columns + (start + depth)[:, None]
        both = inside[:, None] & wanted[None, :]
        opened = tl.dot(
            left, tl.load(gate + places, mask=both, other=0.0), opened, input_precision="ieee"
        )
        raised = tl.dot(
            left, tl.load(up + places, mask=both, other=0.0), raised, input_precision="ieee"
        )
    opened = with_bias(opened, gate_bias, features, wanted)
    return activate(opened, ACTIVATION) * with_bias(raised, up_bias, features, wanted)


@triton.jit
def with_bias(total, bias, features, wanted):
    """Add the bias of these features, if there is one, to a float32 tile."""
    if bias is not None:
        total += tl.load(bias + features, mask=wanted, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def tile_of(program, row_tiles, feature_tiles, GROUP: tl.constexpr):
    """Tile of a program: GROUP tiles of rows go through all features, and share weights in L2."""
    in_group = GROUP * feature_tiles
    first = program // in_group * GROUP
    rows = tl.minimum(row_tiles - first, GROUP)
    return first + program % in_group % rows, program % in_group // rows
