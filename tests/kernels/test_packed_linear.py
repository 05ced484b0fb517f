"""Products with kept rows, against their plain twins."""

from __future__ import annotations

import pytest
import torch
from twins import FAST, every_dtype, keep_some, normal, same, weights

from plain_kernels import PLAIN
from skipgpt.kernels.compaction import kept_rows

# Of 3 x 50 rows: none, one, a part of a tile, one more than a tile of 64 or 128, all.
every_count = pytest.mark.parametrize("kept", [0, 1, 40, 65, 129, 150])
INPUTS, OUTPUTS = 72, 150  # no multiple of a tile


@every_dtype
@every_count
def test_gate_up(kept: int, dtype: torch.dtype) -> None:
    read, found = normal(150, INPUTS, dtype=dtype), kept_rows(keep_some(3, 50, kept))
    gate, up = weights(OUTPUTS, INPUTS, dtype), weights(OUTPUTS, INPUTS, dtype)
    given = (read, found.rows, found.count, gate, up, None, None, "silu")
    same(FAST.gate_up(*given)[:kept], PLAIN.gate_up(*given)[:kept])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gate_up_with_biases_and_each_activation(activation: str) -> None:
    read, found = normal(12, 24), kept_rows(keep_some(2, 6, 7))
    gate, up = weights(40, 24), weights(40, 24)
    given = (read, found.rows, found.count, gate, up, normal(40), normal(40), activation)
    same(FAST.gate_up(*given)[:7], PLAIN.gate_up(*given)[:7])


def test_an_activation_is_applied_to_the_gate_only() -> None:
    found = kept_rows(torch.ones(1, 4, dtype=torch.bool))
    read, zero = normal(4, 16), torch.zeros(8, 16)
    given = (read, found.rows, found.count, zero, weights(8, 16))
    half = FAST.gate_up(*given, torch.ones(8), torch.full((8,), 0.25), "silu")
    wanted = torch.sigmoid(torch.tensor(1.0)) * (read @ given[4].T + 0.25)
    same(half, wanted)


@every_dtype
@every_count
@pytest.mark.parametrize("biased", [False, True])
def test_row_linear(kept: int, biased: bool, dtype: torch.dtype) -> None:
    read, found = normal(150, INPUTS, dtype=dtype), kept_rows(keep_some(3, 50, kept))
    bias = normal(OUTPUTS, dtype=dtype) if biased else None
    given = (read, found.rows, found.count, weights(OUTPUTS, INPUTS, dtype), bias)
    used = found.rows[:kept].long()
    same(FAST.row_linear(*given)[used], PLAIN.row_linear(*given)[used])


@every_dtype
@every_count
@pytest.mark.parametrize("biased", [False, True])
def test_add_linear(kept: int, biased: bool, dtype: torch.dtype) -> None:
    found = kept_rows(keep_some(3, 50, kept))
    stream, packed = normal(150, OUTPUTS, dtype=dtype), normal(150, INPUTS, dtype=dtype)
    bias = normal(OUTPUTS, dtype=dtype) if biased else None
    rest = (found.rows, found.count, weights(OUTPUTS, INPUTS, dtype), bias, 0.75)
    before = stream.clone()
    for sources in (None, found.rows):
        made = FAST.add_linear(stream, packed, sources, *rest)
        same(made, PLAIN.add_linear(stream, packed, sources, *rest))
        skipped = torch.ones(150, dtype=torch.bool)
        skipped[found.rows[:kept].long()] = False
        assert torch.equal(made[skipped], stream[skipped])
    assert torch.equal(stream, before), "the stream before may have been recorded"


def test_rows_that_skip_are_not_read() -> None:
    keep = keep_some(2, 10, 9)
    found, skipped = kept_rows(keep), ~keep.flatten()
    read, packed = normal(20, 16), normal(20, 16)
    read[skipped] = torch.nan
    packed[9:] = torch.nan
    weight = weights(16, 16)
    queries = FAST.row_linear(read, found.rows, found.count, weight, None)
    assert queries[~skipped].isfinite().all()
    opened = FAST.gate_up(read, found.rows, found.count, weight, weight, None, None, "gelu")
    assert opened[:9].isfinite().all()
    stream = normal(20, 16)
    rest = (found.rows, found.count, weight, None, 1.0)
    assert FAST.add_linear(stream, packed, None, *rest).isfinite().all()
    assert FAST.add_linear(stream, read, found.rows, *rest).isfinite().all()
