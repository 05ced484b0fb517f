"""What each kernel computes, in plain PyTorch: the definition that kernels are tested against.

    read, given      [M, K], what is multiplied; [B, K] in a decode step
    rows, count      [M] and [1] int32: which rows run, packed, and how many
    keep             [B] bool, which sequences run a decode step
    weight, bias     [N, K], and [N] or None; likewise gate and up with theirs
    stream           [M, N], what is added to; [B, N] in a decode step
    query            [B, H, T, size]; one token in a decode step
    key, value       [B, key heads, S, size]
    columns, counts  [B, T] and [B] int32: which queries run, packed and in order, and how many
    mask             [B or 1, 1, T, S] bool, a further condition to see a key; or None
    scale, scaling   of what is added, and of the scores

Packed functions compute all rows and leave zeros where a kernel leaves what was there. Shapes: B
batch, T query tokens, S keys, M = B·T rows, H heads, K and N inputs and outputs of a product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from skipgpt.kernels.interface import Activation, Kernels


def activate(gate: Tensor, activation: Activation) -> Tensor:
    """The activation of a gated MLP."""
    if activation == "silu":
        return functional.silu(gate)
    return functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


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
    """
    packed = read.index_select(0, rows)
    opened = activate(functional.linear(packed, gate, gate_bias), activation)
    return _first(opened * functional.linear(packed, up, up_bias), count)


def row_linear(
    read: Tensor, rows: Tensor, count: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A linear layer of some rows, which stay in their places: [M, N]; other rows are arbitrary."""
    made = read.new_zeros(len(read) + 1, len(weight))
    made[_used(rows, count)] = functional.linear(read.index_select(0, rows), weight, bias)
    return made[:-1]


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

    `sources` [M] int32 says which row of `given` is for each of `rows`; None where it is packed.
    """
    packed = given if sources is None else given.index_select(0, sources)
    update = _first(functional.linear(packed, weight, bias) * scale, count)
    summed = torch.cat([stream, stream.new_zeros(1, stream.shape[1])])
    return summed.index_add(0, _used(rows, count), update.to(stream.dtype))[:-1]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    offset: int,
    scaling: float,
) -> Tensor:
    """Causal attention [B, T, H, size] of some queries to the keys of all tokens.

    The query at place p sees the first p + 1 + `offset` keys. Queries that do not run are
    arbitrary; those that see no key give 0.
    """
    tokens = columns.shape[1]
    places = torch.arange(tokens, device=key.device)
    used = torch.where(places < counts[:, None], columns, tokens).long()
    runs = torch.zeros(len(columns), tokens + 1, dtype=torch.bool, device=key.device)
    runs = runs.scatter_(1, used, True)[:, None, :-1, None]
    visible = torch.arange(key.shape[2], device=key.device) <= places[:, None] + offset
    seen = runs & visible if mask is None else runs & visible & mask
    return _attention(query, key, value, seen, scaling)


def decode_gate_up(
    read: Tensor,
    keep: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: Activation,
) -> Tensor:
    """`gate_up` of the sequences that keep: [B, N]; the rows of others are arbitrary."""
    opened = activate(functional.linear(read, gate, gate_bias), activation)
    return (opened * functional.linear(read, up, up_bias)).masked_fill(~keep[:, None], 0)


def decode_linear(
    read: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """A linear layer of the sequences that keep: [B, N]; the rows of others are arbitrary.

    Where there is a stream [B, N], it plus `scale` times that where it keeps, as a new tensor.
    """
    # Rows that skip were never written and may hold NaN: multiplying by 0 would not do.
    update = functional.linear(read, weight, bias).mul(scale).masked_fill(~keep[:, None], 0)
    return update if stream is None else stream + update.to(stream.dtype)


def decode_attend(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Attention [B, 1, H, size] of the query of each sequence that keeps; others are arbitrary."""
    visible = keep[:, None, None, None].expand(-1, 1, 1, key.shape[2])
    return _attention(query, key, value, visible if mask is None else visible & mask, scaling)


def _attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Attention [B, N, H, size]; 0 where nothing is seen, whatever the query holds."""
    group = query.shape[1] // key.shape[1]
    keys, values = (each.repeat_interleave(group, 1).float() for each in (key, value))
    scores = (scaling * query.float() @ keys.mT).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).masked_fill(~seen, 0)
    return (weights @ values).to(query.dtype).transpose(1, 2).contiguous()


def _used(places: Tensor, count: Tensor) -> Tensor:
    """Places [M]: the first `count` as they are, the others moved behind the end."""
    there = torch.arange(len(places), device=places.device) < count
    return torch.where(there, places, len(places)).long()


def _first(packed: Tensor, count: Tensor) -> Tensor:
    """Packed rows, 0 behind the first `count`."""
    there = torch.arange(len(packed), device=packed.device) < count
    return packed.masked_fill(~there[:, None], 0)


PLAIN = Kernels(
    gate_up=gate_up,
    row_linear=row_linear,
    add_linear=add_linear,
    attend=attend,
    decode_gate_up=decode_gate_up,
    decode_linear=decode_linear,
    decode_attend=decode_attend,
)
