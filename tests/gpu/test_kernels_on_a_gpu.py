"""Every kernel in bfloat16, against its twin in float32 on the same numbers."""

from __future__ import annotations

import pytest
import torch
from on_gpu import CUDA
from torch import Tensor

from plain_kernels import PLAIN
from skipgpt.kernels.compaction import kept_queries, kept_rows
from skipgpt.kernels.select import kernels_for, triton_kernels

FAST = triton_kernels()
# Bfloat16 has 8 bits: an output is off by up to 0.4 % of itself, and attention rounds its weights,
# too. Sums are float32 in both.
CLOSE = {"rtol": 1e-2, "atol": 1e-2}
INPUTS, OUTPUTS = 520, 1416  # multiples of 8, not of a tile
every_count = pytest.mark.parametrize("kept", [0, 1, 127, 129, 600])


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=CUDA, dtype=torch.bfloat16)


def weights(outputs: int, inputs: int) -> Tensor:
    return normal(outputs, inputs) / inputs**0.5


def wide(*given: object) -> list[object]:
    """The same arguments in float32."""
    return [
        each.float() if isinstance(each, Tensor) and each.is_floating_point() else each
        for each in given
    ]


def same(actual: Tensor, expected: Tensor) -> None:
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.float(), expected, **CLOSE)


def keep_some(batch: int, tokens: int, kept: int) -> Tensor:
    keep = torch.zeros(batch * tokens, dtype=torch.bool, device=CUDA)
    keep[torch.randperm(batch * tokens, device=CUDA)[:kept]] = True
    return keep.view(batch, tokens)


def test_kernels_are_chosen_here() -> None:
    assert kernels_for(normal(1).device, torch.float32) is FAST
    assert kernels_for(normal(1).device, torch.float64) is None


@every_count
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gate_up(kept: int, activation: str) -> None:
    found, read = kept_rows(keep_some(3, 200, kept)), normal(600, INPUTS)
    biases = (normal(OUTPUTS), normal(OUTPUTS))
    for bias in (biases, (None, None)):
        given = (read, found.rows, found.count, weights(OUTPUTS, INPUTS), weights(OUTPUTS, INPUTS))
        made = FAST.gate_up(*given, *bias, activation)
        same(made[:kept], PLAIN.gate_up(*wide(*given, *bias), activation)[:kept])


@every_count
@pytest.mark.parametrize("biased", [False, True])
def test_row_linear_and_add_linear(kept: int, biased: bool) -> None:
    found, read = kept_rows(keep_some(3, 200, kept)), normal(600, INPUTS)
    weight, bias = weights(OUTPUTS, INPUTS), normal(OUTPUTS) if biased else None
    given = (read, found.rows, found.count, weight, bias)
    used = found.rows[:kept].long()
    same(FAST.row_linear(*given)[used], PLAIN.row_linear(*wide(*given))[used])
    stream = normal(600, OUTPUTS)
    for sources in (None, found.rows):
        given = (stream, read, sources, found.rows, found.count, weight, bias, 0.75)
        same(FAST.add_linear(*given), PLAIN.add_linear(*wide(*given)))


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(8, 2, 128), (4, 4, 64), (4, 1, 256)])
@pytest.mark.parametrize("kept", [0, 1, 500, 1100])
@pytest.mark.parametrize("masked", [False, True])
def test_attend(kept: int, heads: int, key_heads: int, size: int, masked: bool) -> None:
    found = kept_queries(keep_some(2, 550, kept))
    query = normal(2, 550, heads, size).transpose(1, 2)
    key, value = normal(2, key_heads, 600, size), normal(2, key_heads, 600, size)
    mask = torch.rand(2, 1, 550, 600, device=CUDA) < 0.5 if masked else None
    given = (query, key, value, found.columns, found.counts, mask, 50, size**-0.5)
    used = found.rows[:kept].long()
    made, wanted = FAST.attend(*given), PLAIN.attend(*wide(*given))
    same(made.flatten(0, 1)[used], wanted.flatten(0, 1)[used])


@pytest.mark.parametrize("flags", [[True], [False, True, False], [n % 3 == 0 for n in range(64)]])
@pytest.mark.parametrize("biased", [False, True])
def test_products_of_a_step(flags: list[bool], biased: bool) -> None:
    keep = torch.tensor(flags, device=CUDA)
    read, stream = normal(len(keep), INPUTS), normal(len(keep), OUTPUTS)
    read[~keep] = torch.nan
    weight, bias = weights(OUTPUTS, INPUTS), normal(OUTPUTS) if biased else None
    given = (read, keep, weight, bias)
    same(FAST.decode_linear(*given)[keep], PLAIN.decode_linear(*wide(*given))[keep])
    given = (read, keep, weight, bias, stream, 0.75)
    same(FAST.decode_linear(*given), PLAIN.decode_linear(*wide(*given)))
    given = (read, keep, weight, weights(OUTPUTS, INPUTS), bias, bias, "silu")
    same(FAST.decode_gate_up(*given)[keep], PLAIN.decode_gate_up(*wide(*given))[keep])


@pytest.mark.parametrize("keys", [1, 127, 700, 9000])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_step(keys: int, masked: bool) -> None:
    keep = torch.tensor([True, False, True], device=CUDA)
    query, key, value = normal(3, 8, 1, 128), normal(3, 2, keys, 128), normal(3, 2, keys, 128)
    mask = torch.rand(3, 1, 1, keys, device=CUDA) < 0.5 if masked else None
    given = (query, key, value, keep, mask, 128**-0.5)
    same(FAST.decode_attend(*given)[keep], PLAIN.decode_attend(*wide(*given))[keep])
