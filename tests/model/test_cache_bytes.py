"""The memory of a cache is that of what it holds on to, not of what it shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from cases import ONE_ROW, base, routed
from skipgpt.model.caches.growing_cache import STEP, make_room
from skipgpt.model.caches.policy import cache_bytes, dense_cache_bytes
from skipgpt.model.state import execution

ROWS, HEADS, SIZE = 2, 3, 4
TOKEN = 2 * ROWS * HEADS * SIZE * 4
"""Bytes of one token's float32 keys and values, of all rows."""


def states(tokens: int) -> Tensor:
    return torch.ones(ROWS, HEADS, tokens, SIZE)


def filled(tokens: int) -> DynamicCache:
    cache = DynamicCache()
    cache.update(states(tokens), states(tokens), 0)
    return cache


@torch.no_grad()
def test_room_counts_once_there_is_some() -> None:
    cache = filled(5)
    make_room(cache)
    assert cache_bytes(cache) == 5 * TOKEN
    for _ in range(3):
        cache.update(states(1), states(1), 0)
        assert cache_bytes(cache) == dense_cache_bytes(cache) == (5 + 1 + STEP) * TOKEN
    cache.crop(-4)
    assert cache_bytes(cache) == (5 + 1 + STEP) * TOKEN


@torch.no_grad()
def test_room_counts_as_long_as_it_is_held() -> None:
    cache = filled(5)
    make_room(cache)
    cache.update(states(1), states(1), 0)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert cache_bytes(cache) == (6 + 5 + 1 + STEP) * TOKEN
    cache.update(states(1), states(1), 0)
    assert cache_bytes(cache) == (6 + 1 + STEP) * TOKEN


def test_what_is_shared_counts_once() -> None:
    cache, both = filled(5), torch.ones(2, ROWS, HEADS, 5, SIZE)
    cache.layers[0].keys, cache.layers[0].values = both
    assert cache_bytes(cache) == 5 * TOKEN


@torch.no_grad()
def test_a_sliding_layer_holds_its_prompt_until_the_next_token() -> None:
    model, ids = base("mistral"), ONE_ROW.given["input_ids"]
    token = sum(2 * 4 * layer.self_attn.k_proj.out_features for layer in model.model.layers)
    cache = model(ids, use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[2] == model.config.sliding_window - 1
    assert cache_bytes(cache) == 11 * token
    model(ids[:, :1], past_key_values=cache)
    assert cache_bytes(cache) == model.config.sliding_window * token


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@torch.no_grad()
def test_a_static_cache_counts_in_full(kind: str) -> None:
    model = routed("llama")
    cache = StaticCache(config=model.config, max_cache_len=20)
    with execution(model, kind):
        model(ONE_ROW.given["input_ids"], past_key_values=cache)
    token = sum(2 * 4 * layer.self_attn.k_proj.out_features for layer in model.model.layers)
    assert cache_bytes(cache) == 20 * token
