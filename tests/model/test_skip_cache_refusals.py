"""Caches and arguments that `kv="skip"` cannot take."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from cases import CLOSE, KEEP_ALL, Inputs, routed
from skipgpt import SkipCache
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import add_routers
from tiny import tiny_base


def _dense_filled(model: Any, ids: Tensor) -> DynamicCache:
    with execution(model, "dense"):
        return model(ids, past_key_values=DynamicCache()).past_key_values


@torch.no_grad()
def test_a_cache_of_the_other_policy_is_refused() -> None:
    ids = Inputs((0,), padded=False).ids
    skipping, dense = routed(kv="skip"), routed(kv="dense")
    with pytest.raises(ConfigError) as caught:
        dense(ids, past_key_values=SkipCache(dense.config))
    assert str(caught.value) == (
        'running a model with kv="dense": got a SkipCache; expected any other cache of '
        "transformers; leave past_key_values out, or pass a DynamicCache"
    )
    with pytest.raises(ConfigError) as caught:
        skipping(ids, past_key_values=_dense_filled(skipping, ids))
    assert str(caught.value) == (
        'running a model with kv="skip": got a DynamicCache of 11 tokens; expected a SkipCache, '
        "or an empty DynamicCache to turn into one; leave past_key_values and "
        "cache_implementation out; a model makes its own"
    )
    with pytest.raises(ConfigError, match="got a StaticCache"):
        skipping(ids, past_key_values=StaticCache(config=skipping.config, max_cache_len=20))
    with pytest.raises(ConfigError, match="got a StaticCache"):
        skipping.generate(ids, cache_implementation="static", max_new_tokens=2)


@pytest.mark.parametrize("kv", ["dense", "skip"])
@torch.no_grad()
def test_a_cache_of_another_model_or_batch_is_refused(kv: str) -> None:
    model, ids = routed(kv=kv), Inputs((0,), padded=False).ids
    fresh = SkipCache if kv == "skip" else (lambda config: DynamicCache())

    def cache_of(**changes: object) -> Any:
        from skipgpt.config import RouterConfig

        other = add_routers(tiny_base(**changes), RouterConfig(kv=kv))
        with use_rule(other, KEEP_ALL):
            return other(ids, past_key_values=fresh(other.config)).past_key_values

    with pytest.raises(ConfigError, match="got a cache of 2 layers; expected 3 layers"):
        model(ids, past_key_values=cache_of(num_hidden_layers=2))
    with pytest.raises(ConfigError, match="got a cache whose keys do not fit"):
        model(ids, past_key_values=cache_of(num_key_value_heads=4))
    with pytest.raises(ConfigError, match="got a cache of 1 sequences"):
        model(ids.expand(2, -1), past_key_values=cache_of())


@torch.no_grad()
def test_dense_execution_takes_a_skip_cache_only_if_nothing_is_missing() -> None:
    model, ids = routed(kv="skip"), Inputs((0,), padded=False).ids
    cache = SkipCache(model.config)
    with execution(model, "dense"):
        whole = model(ids, use_cache=False).logits
        model(ids[:, :6], past_key_values=cache)
        rest = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 6:], **CLOSE)
    model(ids, past_key_values=cache)
    with execution(model, "dense"), pytest.raises(ConfigError, match="skipped tokens are missing"):
        model(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("kv", ["dense", "skip"])
@torch.no_grad()
def test_beam_search_goes_on_from_a_cropped_cache(kv: str) -> None:
    model, ids = routed(kv=kv), Inputs((0,), padded=False).ids
    beams = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with execution(model, "gated"):
        expected = model.generate(ids[:, :8], **beams, use_cache=False)
    cache = model(ids.repeat(3, 1)).past_key_values
    cache.crop(-4)
    actual = model.generate(ids[:, :8], **beams, past_key_values=cache)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@torch.no_grad()
def test_an_attention_without_a_mask_function_is_refused(kind: str) -> None:
    model, inputs = routed(), Inputs((3, 0), padded=True)
    model.config._attn_implementation = "maskless"
    with execution(model, kind), pytest.raises(ConfigError) as caught:
        model(**inputs.given)
    assert str(caught.value) == (
        "running a routed model: got attn_implementation 'maskless' without a mask function; "
        "expected one that AttentionMaskInterface knows; register its mask with "
        "transformers.AttentionMaskInterface.register"
    )


@torch.no_grad()
def test_what_only_a_forward_of_all_tokens_can_give_is_refused() -> None:
    inputs = Inputs((0,), padded=False)
    flash = routed()
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="got attn_implementation 'flash_attention_2'"):
        flash(**inputs.given)
    with pytest.raises(ConfigError, match="got output_router_logits=True"):
        routed("mixtral")(**inputs.given, output_router_logits=True)


@torch.no_grad()
def test_a_cache_with_other_windows_is_refused() -> None:
    ids = Inputs((0,), padded=False).ids
    model = routed(kv="skip")
    with pytest.raises(ConfigError, match=r"got a cache with windows \[5, 5, 5\]"):
        model(ids, past_key_values=SkipCache(routed("mistral").config))
