"""One-token steps, against their plain twins."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from twins import FAST, every_dtype, normal, same, weights

from plain_kernels import PLAIN
from skipgpt.kernels import decode_attention
from tiny import LONG

KEEPS = {
    "none": [False, False, False],
    "one": [False, True, False],
    "all": [True, True, True],
    "alone": [True],
    "seventeen": [n % 3 == 0 for n in range(17)],
}
every_keep = pytest.mark.parametrize("flags", KEEPS.values(), ids=KEEPS)
PAIRED = [(False, torch.float32), (True, torch.float16)]
CROSSED = [(True, torch.float32), (False, torch.float16)]
INPUTS, OUTPUTS = 330, 40  # no multiple of a tile


@every_dtype
@every_keep
@pytest.mark.parametrize("biased", [False, True])
def test_decode_linear(flags: list[bool], biased: bool, dtype: torch.dtype) -> None:
    keep = torch.tensor(flags)
    read, weight = normal(len(keep), INPUTS, dtype=dtype), weights(OUTPUTS, INPUTS, dtype)
    read[~keep] = torch.nan
    bias = normal(OUTPUTS, dtype=dtype) if biased else None
    made = FAST.decode_linear(read, keep, weight, bias)
    same(made[keep], PLAIN.decode_linear(read, keep, weight, bias)[keep])


@every_dtype
@every_keep
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_decode_gate_up(flags: list[bool], activation: str, dtype: torch.dtype) -> None:
    keep = torch.tensor(flags)
    read = normal(len(keep), INPUTS, dtype=dtype)
    gate, up = weights(OUTPUTS, INPUTS, dtype), weights(OUTPUTS, INPUTS, dtype)
    bias = normal(OUTPUTS, dtype=dtype)
    for biases in ((None, None), (bias, -bias)):
        given = (read, keep, gate, up, *biases, activation)
        same(FAST.decode_gate_up(*given)[keep], PLAIN.decode_gate_up(*given)[keep])


@every_dtype
@every_keep
@pytest.mark.parametrize("biased", [False, True])
def test_decode_linear_added_to_a_stream(
    flags: list[bool], biased: bool, dtype: torch.dtype
) -> None:
    keep = torch.tensor(flags)
    stream, given = normal(len(keep), OUTPUTS, dtype=dtype), normal(len(keep), INPUTS, dtype=dtype)
    given[~keep] = torch.nan  # never written by the kernel before
    bias = normal(OUTPUTS, dtype=dtype) if biased else None
    rest = (given, keep, weights(OUTPUTS, INPUTS, dtype), bias, stream, 0.75)
    made = FAST.decode_linear(*rest)
    same(made, PLAIN.decode_linear(*rest))
    assert torch.equal(made[~keep], stream[~keep])


@pytest.mark.parametrize(("masked", "dtype"), PAIRED + CROSSED if LONG else PAIRED)
@pytest.mark.parametrize("flags", [[False, False], [True], [True, False, True]])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 16), (4, 1, 24), (6, 2, 8)])
def test_decode_attend(
    flags: list[bool], heads: int, key_heads: int, size: int, masked: bool, dtype: torch.dtype
) -> None:
    keep, keys = torch.tensor(flags), 150  # a split of 128 and a part of one
    query = normal(len(keep), heads, 1, size, dtype=dtype)
    key, value = (normal(len(keep), key_heads, keys, size, dtype=dtype) for _ in range(2))
    mask = torch.rand(len(keep), 1, 1, keys) < 0.5 if masked else None
    given = (query, key, value, keep, mask, 0.3)
    same(FAST.decode_attend(*given)[keep], PLAIN.decode_attend(*given)[keep])


@pytest.mark.parametrize("keys", [1, 64, 128, 129, 700])
def test_any_number_of_keys(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_attention, "SHORTEST_SPLIT", 1)
    monkeypatch.setattr(decode_attention, "CHUNK", 4)
    query, keep = normal(2, 4, 1, 16), torch.ones(2, dtype=torch.bool)
    key, value = normal(2, 2, keys, 16), normal(2, 2, keys, 16)
    wanted = scaled_dot_product_attention(query, key, value, enable_gqa=True, scale=0.25)
    for kernels in (FAST, PLAIN):
        made = kernels.decode_attend(query, key, value, keep, None, 0.25)
        same(made, wanted.transpose(1, 2).contiguous())


def test_the_empty_end_of_a_static_cache_is_not_read() -> None:
    query, keep = normal(1, 2, 1, 16), torch.tensor([True])
    key, value = normal(1, 2, 300, 16), normal(1, 2, 300, 16)
    mask = (torch.arange(300) < 30).view(1, 1, 1, 300)
    short = (each[:, :, :30].contiguous() for each in (key, value))
    wanted = FAST.decode_attend(query, *short, keep, None, 0.25)
    key[:, :, 30:] = value[:, :, 30:] = torch.nan
    same(FAST.decode_attend(query, key, value, keep, mask, 0.25), wanted)


@pytest.mark.parametrize("keys", [1, 128, 129, 8192, 8193, 131072])
def test_splits_cover_all_keys_and_are_few(keys: int) -> None:
    length = decode_attention.split_length(keys)
    splits = -(-keys // length)
    assert length % decode_attention.KEYS == 0
    assert splits * length >= keys
    assert splits <= decode_attention.MOST_SPLITS
