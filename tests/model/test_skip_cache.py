"""The cache of `kv="skip"` holds kept tokens only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from cases import CLOSE, KEEP_ALL, SITES, Inputs, checkpoint_activations, routed
from skipgpt import SkipCache
from skipgpt.errors import ConfigError
from skipgpt.evaluation.cache_memory import cache_memory
from skipgpt.model.caches.policy import cache_bytes
from skipgpt.model.caches.skip_cache import SkipLayer
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import Forced, GumbelSample, Site
from tiny import tiny_base

HEADS, SIZE = 2, 4


def filled(layer: SkipLayer, *keeps: list[str]) -> SkipLayer:
    """Feed forwards of several rows, "x.x" keeping its first and third token.

    The key of row b's token at place p is 100 b + p in every component.
    """
    for rows in keeps:
        stored = torch.tensor([[letter == "x" for letter in row] for row in rows])
        places = torch.arange(stored.shape[1]).expand(stored.shape) + layer.seen
        numbers = places + 100.0 * torch.arange(len(rows))[:, None]
        keys = numbers[:, None, :, None].expand(-1, HEADS, -1, SIZE)
        layer.extend(keys, -keys, places, stored, stored.shape[1])
    return layer


def held(layer: SkipLayer) -> list[list[int]]:
    """The numbers of the keys that each row holds; checks that all parts agree."""
    for row in layer.rows or ():
        assert row.keys.shape == (HEADS, len(row.places), SIZE)
        assert torch.equal(row.keys, -row.values)
        assert torch.equal(row.keys[0, :, 0] % 100, row.places.float())
    return [row.keys[0, :, 0].int().tolist() for row in layer.rows or ()]


def test_only_kept_tokens_are_held_and_all_are_counted() -> None:
    layer = filled(SkipLayer(), ["x.x", ".xx"], ["..", "x."])
    assert held(layer) == [[0, 2], [101, 102, 103]]
    assert layer.get_seq_length() == 5
    assert layer.get_mask_sizes(3) == (8, 0)
    assert layer.get_max_length() == -1
    # 5 tokens x 2 heads x 4 components x 4 bytes, keys and values, and 4 bytes for each place.
    assert layer.nbytes == 5 * (2 * HEADS * SIZE * 4 + 4)
    assert layer.dense_tokens == 10


def test_rows_come_back_side_by_side_with_the_new_tokens_behind() -> None:
    layer = filled(SkipLayer(), ["x.x", ".x."])
    past = layer.past
    assert past is not None
    places, there = past
    assert places[there].tolist() == [0, 2, 1]
    assert there.tolist() == [[True, True], [True, False]]
    new = torch.ones(2, HEADS, 1, SIZE)
    keys, values = layer.extend(
        new, new, torch.tensor([[3], [3]]), torch.tensor([[True], [False]]), 1
    )
    assert keys.shape == values.shape == (2, HEADS, 3, SIZE)
    assert keys[0, 0, :, 0].tolist() == [0, 2, 1]
    assert keys[1, 0, 0, 0] == 101
    assert keys[1, 0, 2, 0] == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda layer: layer.crop(-2), [[0, 2], [101, 102]]),
        (lambda layer: layer.crop(0), [[0, 2, 4], [101, 102]]),
        (lambda layer: layer.crop(-9), [[], []]),
        (lambda layer: layer.reorder_cache(torch.tensor([1, 1])), [[101, 102], [101, 102]]),
        (lambda layer: layer.batch_select_indices(torch.tensor([1])), [[101, 102]]),
        (lambda layer: layer.batch_select_indices(torch.tensor([True, False])), [[0, 2, 4]]),
        (
            lambda layer: layer.batch_repeat_interleave(2),
            [[0, 2, 4], [0, 2, 4], [101, 102], [101, 102]],
        ),
        (lambda layer: layer.reset(), []),
    ],
)
def test_the_contract_of_transformers_cache_layers(
    change: Callable[[SkipLayer], None], expected: list[list[int]]
) -> None:
    layer = filled(SkipLayer(), ["x.x", ".xx"], [".x", ".."])
    change(layer)
    assert held(layer) == expected
    assert layer.batch_size == len(expected)


def test_a_window_drops_what_no_later_query_sees() -> None:
    layer = filled(SkipLayer(window=4), ["xx.xx"])
    # The next query is at place 5 and sees places 2 to 5.
    assert held(layer) == [[3, 4]]
    assert layer.get_seq_length() == 5
    assert layer.dense_tokens == 3
    assert held(filled(layer, ["x"])) == [[3, 4, 5]]
    with pytest.raises(ConfigError, match="sliding window that has moved on"):
        layer.crop(-1)


def test_a_window_that_records_its_past_can_be_cropped() -> None:
    layer = SkipLayer(window=3)
    layer.activate_past_recording()
    filled(layer, ["xxxxx"])
    assert held(layer) == [[0, 1, 2, 3, 4]]
    layer.crop(-2)
    assert held(layer) == [[1, 2]]
    assert layer.get_seq_length() == 3


def test_crop_takes_a_negative_number() -> None:
    with pytest.raises(ValueError, match="got 3"):
        SkipLayer().crop(3)


@torch.no_grad()
def test_training_sees_exactly_the_keys_that_inference_stores() -> None:
    """A sampled training forward, then the same routes run step by step from a cache."""
    model, ids = routed(kv="skip"), Inputs((0, 0), padded=False).ids
    with (
        execution(model, "gated"),
        use_rule(model, GumbelSample(1.0)),
        record_routing(model) as trace,
    ):
        trained = model(ids, use_cache=False).logits
    chosen = trace.steps[0].decisions
    keeps = {site: getattr(chosen[site.layer], site.module).keep for site in SITES}
    cache, logits = SkipCache(model.config), []
    for start, end in ((0, 5), (5, 6), (6, 11)):
        with use_rule(model, Forced({s: k[:, start:end] for s, k in keeps.items()})):
            logits.append(model(ids[:, start:end], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, 1), trained, **CLOSE)
    for index, layer in enumerate(cache.layers):
        kept = keeps[Site(index, "attn")]
        assert [row.places.tolist() for row in layer.rows] == [
            row.nonzero().squeeze(-1).tolist() for row in kept
        ]
    dense = routed(kv="dense")
    with execution(dense, "gated"), use_rule(dense, Forced(keeps)):
        seen = dense(ids, use_cache=False).logits
    assert (seen - trained).abs().max() > 1e-2, "the keys of skipped tokens do not matter here"


@torch.no_grad()
def test_no_query_sees_a_key_of_a_skipped_token() -> None:
    """Whatever a token that skips attention in a layer holds there is unseen by the others."""
    model, ids = routed(kv="skip"), Inputs((0,), padded=False).ids
    skipped = torch.ones(1, 11, dtype=torch.bool)
    skipped[0, 4] = False
    routes = {Site(n, "attn"): skipped for n in range(3)}
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % 257
    with use_rule(model, Forced(routes)):
        one, other = model(ids).logits, model(changed).logits
    assert torch.equal(one[0, 5:], other[0, 5:])
    assert not torch.equal(one[0, 4], other[0, 4])


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@torch.no_grad()
def test_memory_saved_is_the_attention_sparsity(kind: str) -> None:
    model = add_routers(tiny_base(head_dim=64, max_position_embeddings=1024), None)
    model = routed_skip(model)
    ids = torch.randint(1, 257, (2, 1024))
    with execution(model, kind):
        memory = cache_memory(model, ids)
    assert 0.2 < memory.attn < 0.8
    assert memory.saved == pytest.approx(memory.attn, abs=0.02)
    assert memory.tokens == 2048
    with execution(model, "dense"):
        dense = model(ids).past_key_values
    assert memory.dense_bytes == cache_bytes(dense)


def routed_skip(model: Any) -> Any:
    """The same base with policy `skip`."""
    from skipgpt.config import RouterConfig
    from skipgpt.model.surgery import remove_routers

    return add_routers(remove_routers(model), RouterConfig(kv="skip"))


@torch.no_grad()
def test_padding_is_not_stored() -> None:
    model, inputs = routed(kv="skip"), Inputs((3, 0, 6), padded=True)
    with use_rule(model, KEEP_ALL):
        cache = model(**inputs.given, use_cache=True).past_key_values
    for layer in cache.layers:
        assert [len(row.places) for row in layer.rows] == [8, 11, 5]


@torch.no_grad()
def test_a_model_makes_its_own_cache_only_where_it_would_cache_at_all() -> None:
    model, ids = routed(kv="skip"), Inputs((0,), padded=False).ids
    assert type(model(ids).past_key_values) is SkipCache
    assert model(ids, use_cache=False).past_key_values is None
    given = DynamicCache(config=model.config)
    assert model(ids, past_key_values=given).past_key_values is given
    assert isinstance(given, SkipCache), "an empty cache turns into one in place"
    assert given.get_seq_length() == 11


@torch.no_grad()
def test_a_layer_that_keeps_nothing_stores_nothing() -> None:
    model, ids = routed(kv="skip"), Inputs((0, 0), padded=False).ids
    with use_rule(model, Forced(default=False)):
        cache = model(ids).past_key_values
    assert cache.nbytes == 0
    assert cache.get_seq_length() == 11
    with use_rule(model, KEEP_ALL):
        model(ids[:, :2], past_key_values=cache)
    assert [len(row.places) for row in cache.layers[2].rows] == [2, 2]
    assert cache.layers[2].rows[0].places.tolist() == [11, 12]


@torch.no_grad()
def test_recording_the_past_too_late_does_not_bring_it_back() -> None:
    layer = filled(SkipLayer(window=5), ["xxxxxxxxxxx"])
    layer.activate_past_recording()
    filled(layer, ["x"])
    layer.crop(-1)
    with pytest.raises(ConfigError, match="moved on"):
        layer.crop(-3)


def test_gradients_are_right_where_two_forwards_share_one_backward() -> None:
    """Activation checkpointing comes back to the first after the second has run."""
    batches = [Inputs((3, 0, 6), padded=True), Inputs((0, 5, 2), padded=True, tokens=8)]

    def gradients(checkpointing: bool) -> list[Tensor]:
        model = routed(kv="skip").train()
        if checkpointing:
            checkpoint_activations(model, use_reentrant=False)
        losses = [model(**b.given, use_cache=False).logits[b.real].square().mean() for b in batches]
        return list(torch.autograd.grad(sum(losses), list(model.model.layers[0].mlp.parameters())))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
