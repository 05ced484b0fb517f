"""A cache with room at its end holds what a DynamicCache holds, whatever is done to it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from cases import ONE_ROW, base, routed
from skipgpt.model.caches.growing_cache import STEP, GrowingBuffer, PreallocatedLayer, make_room
from skipgpt.model.state import execution, use_rule
from skipgpt.routing.decision import RandomRoutes

Change = Callable[[DynamicCache], object]
CHANGES: dict[str, Change] = {
    "crop": lambda cache: cache.crop(-1),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([0, 1])),
    "copy": lambda cache: None,
}


def states(tokens: int, rows: int, fill: float) -> Tensor:
    return torch.full((rows, 2, tokens, 4), fill) + torch.arange(4)


def pair() -> tuple[DynamicCache, DynamicCache]:
    plain = DynamicCache()
    plain.update(states(3, 2, 0.0), states(3, 2, 0.5), 0)
    roomy = copy.deepcopy(plain)
    make_room(roomy)
    assert type(roomy.layers[0]) is PreallocatedLayer
    return plain, roomy


@given(
    st.lists(st.one_of(st.integers(1, 90), st.sampled_from(sorted(CHANGES))), max_size=8),
)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_it_holds_what_a_plain_cache_holds(doings: list[int | str]) -> None:
    caches = list(pair())
    for number, doing in enumerate(doings):
        for which, cache in enumerate(caches):
            rows = len(cache.layers[0].keys)
            if isinstance(doing, int):
                fill = float(number)
                got = cache.update(states(doing, rows, fill), states(doing, rows, -fill), 0)
                assert got[0] is cache.layers[0].keys
            elif doing == "copy":
                caches[which] = copy.deepcopy(cache)
            else:
                CHANGES[doing](cache)
        plain, roomy = (cache.layers[0] for cache in caches)
        assert torch.equal(plain.keys, roomy.keys)
        assert torch.equal(plain.values, roomy.values)
        assert plain.get_seq_length() == roomy.get_seq_length()


@torch.no_grad()
def test_a_token_is_written_without_copying_what_is_held() -> None:
    _, roomy = pair()
    roomy.update(states(1, 2, 1.0), states(1, 2, 1.0), 0)
    places = [roomy.update(states(1, 2, 1.0), states(1, 2, 1.0), 0)[0].data_ptr() for _ in range(9)]
    assert len(set(places)) == 1


@torch.no_grad()
@torch.no_grad()
def test_token_by_token_it_outgrows_its_buffer_again_and_again() -> None:
    buffer, made = GrowingBuffer(), torch.randn(2, 3, 5 * STEP, 4)
    held, buffers = made[:, :, :3], []
    for token in range(3, made.shape[2]):
        held = buffer.append(held, made[:, :, token : token + 1])
        assert torch.equal(held, made[:, :, : token + 1])
        if not buffers or buffers[-1] is not buffer.whole:
            buffers.append(buffer.whole)
    assert len(buffers) > 3


def test_what_was_returned_before_a_crop_is_not_written_to() -> None:
    _, roomy = pair()
    roomy.update(states(4, 2, 1.0), states(4, 2, 1.0), 0)
    seen = roomy.layers[0].keys
    before = seen.clone()
    roomy.crop(-2)
    roomy.update(states(2, 2, 9.0), states(2, 2, 9.0), 0)
    assert torch.equal(seen, before)


def test_a_room_of_inference_mode_is_not_written_to_outside() -> None:
    _, roomy = pair()
    with torch.inference_mode():
        roomy.update(states(1, 2, 1.0), states(1, 2, 1.0), 0)
    with torch.no_grad():
        keys, _ = roomy.update(states(1, 2, 1.0), states(1, 2, 1.0), 0)
    assert keys.shape[2] == 5


def test_gradients_pass_through_an_update() -> None:
    _, roomy = pair()
    new = states(1, 2, 1.0).requires_grad_()
    keys, _ = roomy.update(new, new, 0)
    keys.sum().backward()
    assert torch.equal(new.grad, torch.ones_like(new))


@torch.no_grad()
def test_a_compiled_graph_appends_as_a_plain_cache_does() -> None:
    plain, roomy = pair()
    roomy.update(states(1, 2, 1.0), states(1, 2, 1.0), 0)
    plain.update(states(1, 2, 1.0), states(1, 2, 1.0), 0)
    compiled = torch.compile(lambda new: roomy.layers[0].update(new, new)[0], backend="eager")
    got = [compiled(states(1, 2, fill)) for fill in (2.0, 3.0)]
    wanted = [plain.layers[0].update(new, new)[0] for new in (states(1, 2, 2.0), states(1, 2, 3.0))]
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [states(1, 3, 0.0), torch.zeros(2, 3, 1, 4)])
@torch.no_grad()
def test_what_does_not_fit_is_refused_as_by_a_plain_cache(wrong: Tensor) -> None:
    for cache in pair():
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            cache.update(wrong, wrong, 0)


def test_other_caches_are_left_alone() -> None:
    for cache in (None, DynamicCache(offloading=True), object()):
        make_room(cache)
    sliding = DynamicCache(config=base("gemma2").config)
    before = [type(layer) for layer in sliding.layers]
    make_room(sliding)
    kinds = {DynamicLayer: PreallocatedLayer}
    assert [type(layer) for layer in sliding.layers] == [kinds.get(each, each) for each in before]
    assert len(set(before)) == 2


@torch.no_grad()
def test_generating_makes_room_only_where_tokens_are_skipped() -> None:
    ids = ONE_ROW.given["input_ids"]
    for name, kind in (
        ("sparse", PreallocatedLayer),
        ("gated", DynamicLayer),
        ("dense", DynamicLayer),
    ):
        model = routed("llama")
        with execution(model, name), use_rule(model, RandomRoutes(0.4)):
            cache = model(ids, use_cache=True).past_key_values
            for _ in range(2):
                model(ids[:, :1], past_key_values=cache)
        assert {type(layer) for layer in cache.layers} == {kind}
    assert cache.get_seq_length() == ids.shape[1] + 2
