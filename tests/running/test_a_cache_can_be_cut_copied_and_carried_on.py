import copy

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import Cache

from cases import CLOSE
from running.ways import (
    caches_of_all_tokens,
    check_logits,
    chosen_by_hand,
    defined,
    empty_cache,
    every_layout,
    every_policy,
    generated,
    has_windows,
    in_chunks,
    needs_transformers,
    prompt,
    sparse_model,
)
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution, record_routing


@pytest.mark.parametrize("chunks", [[11], [3, 8], [7, 3, 1], [1] * 11], ids=str)
@every_layout
@every_policy
@torch.no_grad()
def test_chunks_of_any_size_give_the_logits_of_one_forward(
    family: str, kv: str, chunks: list[int]
) -> None:
    model, ids = sparse_model(family, kv), prompt(3)
    cache = empty_cache(model)
    logits = in_chunks(model, ids, chunks, cache)
    torch.testing.assert_close(logits, defined(model, ids), **CLOSE)
    assert cache.get_seq_length() == 11


@every_layout
@every_policy
@torch.no_grad()
def test_a_cache_that_was_told_of_no_window_serves_as_well(family: str, kv: str) -> None:
    model, ids = sparse_model(family, kv), prompt(2)
    logits = in_chunks(model, ids, [7, 3, 1], DynamicCache())
    torch.testing.assert_close(logits, defined(model, ids), **CLOSE)


@every_layout
@every_policy
@torch.no_grad()
def test_the_executions_may_change_along_the_way(family: str, kv: str) -> None:
    model, ids = sparse_model(family, kv), prompt(2, tokens=15)
    expected = defined(model, ids)
    for first, then in (("gated", "sparse"), ("sparse", "gated")):
        cache = empty_cache(model)
        with execution(model, first):
            start = in_chunks(model, ids[:, :9], [8, 1], cache)
        with execution(model, then):
            end = in_chunks(model, ids[:, 9:], [1, 5], cache)
        torch.testing.assert_close(torch.cat([start, end], dim=1), expected, **CLOSE)


@pytest.mark.parametrize("wrong", [1, 4, 7])
@every_layout
@every_policy
@torch.no_grad()
def test_after_a_crop_the_text_goes_on_as_if_nothing_had_been(
    family: str, kv: str, wrong: int
) -> None:
    model, ids = sparse_model(family, kv), prompt(2)
    if kv == "dense" and has_windows(model):
        needs_transformers("5.18", "masks as wide as a window that records its past")
    cache = empty_cache(model)
    cache.activate_past_recording()  # else a full window has forgotten what a crop needs
    start = in_chunks(model, ids[:, :7], [7], cache)
    in_chunks(model, prompt(2, wrong, seed=9), [wrong], cache)
    cache.crop(-wrong)
    assert cache.get_seq_length() == 7
    logits = torch.cat([start, in_chunks(model, ids[:, 7:], [3, 1], cache)], dim=1)
    torch.testing.assert_close(logits, defined(model, ids), **CLOSE)


@pytest.mark.parametrize("tokens", [2, 8])
@every_layout
@every_policy
@torch.no_grad()
def test_rows_of_a_cache_can_be_reordered(family: str, kv: str, tokens: int) -> None:
    model, order = sparse_model(family, kv), torch.tensor([2, 0, 0])
    past, new = prompt(3, tokens), prompt(3, 5, seed=9)
    cache = _filled(model, past)
    cache.reorder_cache(order)
    logits = in_chunks(model, new, [1, 4], cache)
    expected = defined(model, torch.cat([past[order], new], dim=1))[:, tokens:]
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("tokens", [2, 8])
@every_layout
@every_policy
@torch.no_grad()
def test_rows_of_a_cache_can_be_selected(family: str, kv: str, tokens: int) -> None:
    model, chosen = sparse_model(family, kv), torch.tensor([2, 1])
    past, new = prompt(3, tokens), prompt(2, 5, seed=9)
    cache = _filled(model, past)
    cache.batch_select_indices(chosen)
    logits = in_chunks(model, new, [1, 4], cache)
    expected = defined(model, torch.cat([past[chosen], new], dim=1))[:, tokens:]
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("tokens", [2, 8])
@every_layout
@every_policy
@torch.no_grad()
def test_rows_of_a_cache_can_be_repeated(family: str, kv: str, tokens: int) -> None:
    model = sparse_model(family, kv)
    past, new = prompt(2, tokens), prompt(4, 5, seed=9)
    cache = _filled(model, past)
    cache.batch_repeat_interleave(2)
    logits = in_chunks(model, new, [1, 4], cache)
    expected = defined(model, torch.cat([past.repeat_interleave(2, 0), new], dim=1))[:, tokens:]
    torch.testing.assert_close(logits, expected, **CLOSE)


@every_layout
@every_policy
@torch.no_grad()
def test_a_prefix_is_computed_once_and_continued_twice(family: str, kv: str) -> None:
    model, prefix = sparse_model(family, kv), prompt(2, 8)
    cache = _filled(model, prefix)
    for seed in (5, 6):
        new, copied = prompt(2, 4, seed=seed), copy.deepcopy(cache)
        whole = torch.cat([prefix, new], dim=1)
        logits = in_chunks(model, new, [3, 1], copied)
        torch.testing.assert_close(logits, defined(model, whole)[:, 8:], **CLOSE)
        assert (cache.get_seq_length(), copied.get_seq_length()) == (8, 12)


@every_layout
@every_policy
@torch.no_grad()
def test_generation_starts_from_a_copied_prefix(family: str, kv: str) -> None:
    model, prefix = sparse_model(family, kv), prompt(2, 8)
    cache = _filled(model, prefix)
    for seed in (5, 6):
        whole = torch.cat([prefix, prompt(2, 3, seed=seed)], dim=1)
        with record_routing(model) as trace:
            output = generated(model, whole, past_key_values=copy.deepcopy(cache))
        assert torch.equal(output.sequences, chosen_by_hand(model, whole))
        check_logits(model, output)
        assert trace.steps[0].decisions[0].attn.keep.shape == (2, 3), "the prefix ran again"


@every_layout
@every_policy
@torch.no_grad()
def test_a_conversation_goes_on_with_the_cache_it_got(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    first = generated(model, prompt(2))
    asked = torch.cat([first.sequences, prompt(2, 3, seed=9)], dim=1)
    with record_routing(model) as trace:
        second = generated(model, asked, past_key_values=first.past_key_values)
    assert torch.equal(second.sequences, chosen_by_hand(model, asked))
    check_logits(model, second, prompt_tokens=asked.shape[1])
    # The last token of an answer was chosen and never read.
    assert trace.steps[0].decisions[0].attn.keep.shape == (2, 4)


@every_layout
@every_policy
@torch.no_grad()
def test_a_cache_that_was_reset_begins_anew(family: str, kv: str) -> None:
    if kv == "dense":
        needs_transformers("5.18", "DynamicCache.reset that empties")
    model, ids = sparse_model(family, kv), prompt(2)
    cache = _filled(model, prompt(2, 9, seed=5))
    cache.reset()
    assert cache.get_seq_length() == 0
    logits = in_chunks(model, ids, [8, 3], cache)
    torch.testing.assert_close(logits, defined(model, ids), **CLOSE)


@pytest.mark.parametrize("chunks", [[11], [3, 8], [7, 3, 1]], ids=str)
@every_layout
@caches_of_all_tokens
@torch.no_grad()
def test_a_static_cache_takes_chunks_and_begins_anew(
    family: str, kv: str, chunks: list[int]
) -> None:
    model = sparse_model(family, kv)
    cache = StaticCache(config=model.config, max_cache_len=13)
    for seed in (0, 1):
        ids = prompt(2, seed=seed)
        logits = in_chunks(model, ids, chunks, cache)
        torch.testing.assert_close(logits, defined(model, ids), **CLOSE)
        cache.reset()


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])  # no windows
@caches_of_all_tokens
@torch.no_grad()
def test_a_quantized_cache_is_exact_before_it_is_read_again(family: str, kv: str) -> None:
    needs_transformers("5.21", "a cache in fp8")
    model, ids = sparse_model(family, kv), prompt(2)
    cache = QuantizedCache("fp8", config=model.config)
    first = in_chunks(model, ids[:, :7], [7], cache)
    torch.testing.assert_close(first, defined(model, ids)[:, :7], **CLOSE)
    later = in_chunks(model, ids[:, 7:], [3, 1], cache)
    # Three bits of mantissa: a sixteenth of each key and value, in logits of up to 10.
    torch.testing.assert_close(later, defined(model, ids)[:, 7:], rtol=0, atol=2.0)
    assert (later - defined(model, ids)[:, 7:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@every_policy
@torch.no_grad()
def test_a_cache_of_another_depth_or_batch_is_refused(kv: str, kind: str) -> None:
    model = sparse_model("llama", kv)
    shallow, short = _filled(model, prompt(2)), _filled(model, prompt(1))
    del shallow.layers[2:]
    with execution(model, kind):
        with pytest.raises(ConfigError, match="a cache of 2 layers; expected 3 layers"):
            model(prompt(2), past_key_values=shallow)
        with pytest.raises(ConfigError, match="a cache of 1 sequences; expected as many"):
            model(prompt(2), past_key_values=short)


@every_policy
@torch.no_grad()
def test_a_cache_with_other_heads_is_refused(kv: str) -> None:
    model = sparse_model("llama", kv)
    cache = _filled(sparse_model("gpt_neox", kv), prompt(2))  # 4 heads of keys, not 2
    with pytest.raises((ConfigError, RuntimeError), match="must match"):
        model(prompt(2), past_key_values=cache)


@caches_of_all_tokens
@torch.no_grad()
def test_a_static_cache_that_is_full_is_refused_by_torch(kv: str) -> None:
    model = sparse_model("llama", kv)
    cache = StaticCache(config=model.config, max_cache_len=7)
    with pytest.raises(IndexError, match="out of bounds"):
        model(prompt(2), past_key_values=cache)


def _filled(model: torch.nn.Module, ids: torch.Tensor) -> Cache:
    cache = empty_cache(model)
    model(ids, past_key_values=cache)
    assert cache.get_seq_length() == ids.shape[1]
    return cache
