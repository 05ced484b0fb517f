"""Errors of models in Python: each is caused, and its advice followed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

import skipgpt
from cases import checkpoint_activations
from following import advised
from runs import rows, shared_checkpoint
from skipgpt.config import RouterConfig
from skipgpt.model.caches.skip_cache import SkipCache
from skipgpt.model.packing import check_mask
from skipgpt.model.sparsity import set_sparsity
from skipgpt.model.state import execution, record_routing, routing_state
from skipgpt.model.surgery import add_routers, remove_routers
from skipgpt.system.device_profile import store_profile, typical
from tiny import tiny_base, tiny_routed

IDS = rows(2)
NO_ATTENTIONS = 'run the model with execution "gated" or "dense" for that'
SDPA = 'load the model with attn_implementation="sdpa"'
HOOKS, CACHES = "model/forward_hooks.py", "model/caches"


def kept(kind: str = "sparse", model_type: str = "llama", **router: Any) -> Any:
    model = tiny_routed(model_type, RouterConfig(**router))
    routing_state(model).execution = kind
    return model


def test_routers_that_are_there_are_removed_first() -> None:
    model = tiny_routed()
    with advised("model/surgery.py", "call remove_routers first"):
        add_routers(model)
    add_routers(remove_routers(model))


def test_routers_that_are_missing_are_added_or_loaded() -> None:
    model = tiny_base()
    advice = "call skipgpt.add_routers(model) or skipgpt.load(checkpoint) first"
    with advised("model/state.py", advice):
        skipgpt.calibrate(model, IDS)
    skipgpt.calibrate(skipgpt.add_routers(model), IDS)
    set_sparsity(skipgpt.load(shared_checkpoint())[0], 0.25)


def test_a_model_is_calibrated_before_its_sparsity_is_set() -> None:
    model = tiny_routed()
    with advised("model/sparsity.py", "or call skipgpt.calibrate(model, blocks)"):
        skipgpt.set_sparsity(model, 0.25)
    skipgpt.calibrate(model, IDS)
    skipgpt.set_sparsity(model, 0.25)


def test_a_model_is_calibrated_in_the_unit_that_is_asked_for() -> None:
    model, _ = skipgpt.load(shared_checkpoint())
    with advised("routing/curve.py", "run `skipgpt profile` for these once, then load the model"):
        skipgpt.set_sparsity(model, 0.1, budget="time")
    state = routing_state(model)
    state.curves = dataclasses.replace(state.curves, keep_at=())  # as earlier versions stored them
    advice = (
        "run `skipgpt profile` on the machine that is to be fast, then train it with "
        "`skipgpt train`, or calibrate it again with skipgpt.calibrate(model, blocks, "
        'budget="time")'
    )
    with advised("routing/curve.py", advice):
        skipgpt.set_sparsity(model, 0.1, budget="time")
    cpu = torch.device("cpu")
    store_profile(typical(cpu), cpu, torch.float32)  # as the command does, in a moment
    skipgpt.calibrate(model, IDS, budget="time")
    skipgpt.set_sparsity(model, 0.0, budget="time")
    again, _ = skipgpt.load(shared_checkpoint())
    skipgpt.set_sparsity(again, 0.0, budget="time")


def test_activation_checkpointing_is_not_reentrant() -> None:
    model = kept("gated").train()
    checkpoint_activations(model, use_reentrant=True)
    with (
        advised("model/state.py", 'enable it with {"use_reentrant": False}'),
        record_routing(model),
    ):
        raise AssertionError("was let in")
    checkpoint_activations(model, use_reentrant=False)
    with record_routing(model):
        model(IDS, use_cache=False)


def test_a_budget_of_a_forward_has_a_sparsity_beside_it() -> None:
    model, _ = skipgpt.load(shared_checkpoint())
    with advised("config/budget.py", "give a sparsity beside it (--sparsity)"):
        model(IDS, budget="flops")
    model(IDS, budget="flops", sparsity=0.1)


def test_a_sparsity_holds_until_checkpointed_layers_are_recomputed() -> None:
    model, _ = skipgpt.load(shared_checkpoint())
    checkpoint_activations(model.train(), use_reentrant=False)
    advice = "put forward and backward into `with skipgpt.at_sparsity(model, …):` instead"
    with advised(HOOKS, advice):
        model(IDS, sparsity=0.1, use_cache=False)
    with skipgpt.at_sparsity(model, 0.1):
        model(IDS, labels=IDS, use_cache=False).loss.backward()


@torch.no_grad()
def test_what_all_tokens_are_needed_for_runs_gated_or_dense() -> None:
    dense, experts = kept(), kept(model_type="mixtral")
    with advised(HOOKS, NO_ATTENTIONS):
        dense(IDS, output_attentions=True)
    with advised(HOOKS, NO_ATTENTIONS):
        experts(IDS, output_router_logits=True)
    for kind in ("gated", "dense"):
        with execution(dense, kind), execution(experts, kind):
            dense(IDS, output_attentions=True)
            experts(IDS, output_router_logits=True)


@torch.no_grad()
def test_continuous_batching_is_replaced_by_generate_or_gated() -> None:
    model = kept()
    with advised(HOOKS, 'use `generate`, or execution "gated" with kv="dense"'):
        model(IDS, cache=object())
    model.generate(IDS, max_new_tokens=2, do_sample=False)
    # Gated batches: tests/running, `test_continuous_batching_changes_no_logit`.


@torch.no_grad()
def test_attention_without_masks_to_pack_is_replaced_by_sdpa() -> None:
    model = kept()
    model.config._attn_implementation = "flash_attention_2"
    with advised(HOOKS, SDPA):
        model(IDS)
    again = add_routers(tiny_base(attention="sdpa")).eval()
    routing_state(again).execution = "sparse"
    again(IDS)


@torch.no_grad()
def test_a_mask_that_cannot_be_packed_is_one_of_sdpa_or_not_packed() -> None:
    model = kept()
    with advised("model/packing.py", f'{SDPA}, or use execution "gated"'):
        check_mask(None)
    with execution(model, "gated"):
        model(IDS)
    model(IDS, attention_mask=torch.ones_like(IDS))


@torch.no_grad()
def test_an_attention_without_a_mask_function_is_given_one() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    model = kept("gated")
    model.config._attn_implementation = "of the advice"
    AttentionInterface.register("of the advice", sdpa_attention_forward)
    with advised(HOOKS, "register its mask with transformers.AttentionMaskInterface.register"):
        model(IDS)
    AttentionMaskInterface.register("of the advice", sdpa_mask)
    model(IDS)


@torch.no_grad()
def test_a_cache_of_the_other_policy_is_left_out() -> None:
    model = kept("gated", kv="skip")
    full = DynamicCache(config=model.config)
    with execution(kept("gated"), "gated"):
        tiny_routed()(IDS, past_key_values=full)
    advice = "leave past_key_values and cache_implementation out; a model makes its own"
    with advised(f"{CACHES}/policy.py", advice):
        model(IDS, past_key_values=full)
    cache = model(IDS).past_key_values
    dense = tiny_routed()
    with advised(f"{CACHES}/policy.py", "leave past_key_values out, or pass a DynamicCache"):
        dense(IDS, past_key_values=cache)
    dense(IDS)
    dense(IDS, past_key_values=DynamicCache(config=dense.config))
    advice = "start from an empty cache, or run the model gated or sparse"
    with execution(model, "dense"):
        with advised(f"{CACHES}/skip_cache.py", advice):
            model(IDS[:, :1], past_key_values=cache)
        model(IDS[:, :1], past_key_values=SkipCache(model.config))
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            model(IDS[:, :1], past_key_values=cache)


@torch.no_grad()
def test_a_window_is_recorded_before_it_is_cropped() -> None:
    model = kept("gated", "mistral", kv="skip")
    ids = rows(1, 12)
    advice = "call cache.activate_past_recording() before the forward to be undone"
    cache = SkipCache(model.config)
    with advised(f"{CACHES}/skip_cache.py", advice):
        model(ids, past_key_values=cache)
        cache.crop(-3)
    cache = SkipCache(model.config)
    cache.activate_past_recording()
    model(ids, past_key_values=cache)
    cache.crop(-3)
