"""What of a base's `generation_config` counts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from ends_of_turns import NEW, PROMPT, argmaxes, benchmarked, routed, served
from runs import shared_checkpoint
from skipgpt.checkpoint.loading import load
from skipgpt.generation import generate
from skipgpt.model.loading.generation_settings import Ends, ends_of, warn_left_out
from tiny import byte_tokenizer

HOSTILE: dict[str, Any] = {
    "repetition_penalty": 2.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 3,
    "num_beams": 3,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 1,
    "use_cache": False,
    "max_new_tokens": 1,
}


def test_greedy_text_is_the_argmax_whatever_the_base_sets() -> None:
    model, tokenizer = routed(), byte_tokenizer()
    right, places = argmaxes(model, tokenizer)
    before = model.generation_config
    suppressed = {"suppress_tokens": [int(places[0].argmax())]}
    model.generation_config = GenerationConfig(**HOSTILE, **suppressed)
    model.config.use_cache = False
    told: list[Any] = []
    found = generate(model, tokenizer, PROMPT, max_new_tokens=NEW, on_token=told.append)
    assert (found.text, found.new_tokens) == (right, NEW)
    assert found == generate(model, tokenizer, PROMPT, max_new_tokens=NEW)
    assert len(told) == found.prompt_tokens + NEW
    text, done, tokens = served(model, tokenizer, logprobs=3)
    assert (text, done.reason, done.new_tokens) == (right, "length", NEW)
    assert done.skipped / done.decisions == pytest.approx(found.sparsity)
    for token, place in zip(tokens, places, strict=True):
        assert token.logprob == pytest.approx(place.max().item(), abs=1e-4)
        values = [each.logprob for each in token.top]
        assert values == pytest.approx(place.topk(3).values.tolist(), abs=1e-4)
    assert benchmarked(model, tokenizer) == right
    assert model.generation_config.num_beams == 3  # of the model's own `generate`
    model.generation_config = before


def test_sampling_draws_from_the_softmax_whatever_the_base_sets() -> None:
    model, tokenizer = routed(), byte_tokenizer()
    _, places = argmaxes(model, tokenizer, 1)
    model.generation_config = GenerationConfig(do_sample=True, temperature=9.0, top_k=1)
    torch.manual_seed(0)
    drawn = int(torch.multinomial(places[0].exp(), 1))
    torch.manual_seed(0)
    alone = generate(model, tokenizer, PROMPT, max_new_tokens=1, temperature=1.0)
    seeded, _, _ = served(model, tokenizer, temperature=1.0, max_tokens=1, seed=0)
    assert alone.text == seeded == tokenizer.decode([drawn], skip_special_tokens=True)


def test_a_stop_string_of_the_base_ends_the_text_before_it() -> None:
    model, tokenizer = routed(), byte_tokenizer()
    whole, _ = argmaxes(model, tokenizer)
    stop = next(letter for letter in whole[2:] if letter.isascii())
    model.generation_config = GenerationConfig(stop_strings=[stop])
    told: list[Any] = []
    found = generate(model, tokenizer, PROMPT, max_new_tokens=NEW, on_token=told.append)
    text, done, _ = served(model, tokenizer)
    assert found.text == text == benchmarked(model, tokenizer) == whole[: whole.index(stop)]
    assert "".join(token.text for token in told) == PROMPT + text
    assert (done.reason, done.new_tokens) == ("stop", found.new_tokens)


@pytest.mark.parametrize("more", ["", "later"])
def test_what_the_prompt_begins_is_no_stop_string_of_the_new_text(more: str) -> None:
    model, tokenizer = routed(), byte_tokenizer()
    whole, _ = argmaxes(model, tokenizer)
    shared = PROMPT[-1] + whole[0]
    stops = [shared, whole[1:3]] if more else [shared]
    right = whole[: min((whole.index(stop) for stop in stops if stop in whole), default=NEW)]
    model.generation_config = GenerationConfig(stop_strings=stops)
    told: list[Any] = []
    found = generate(model, tokenizer, PROMPT, max_new_tokens=NEW, on_token=told.append)
    assert found == generate(model, tokenizer, PROMPT, max_new_tokens=NEW)
    text, done, _ = served(model, tokenizer)
    assert found.text == text == benchmarked(model, tokenizer) == right
    assert "".join(token.text for token in told) == PROMPT + right
    assert done.new_tokens == found.new_tokens == (3 if more else NEW)


def test_a_default_of_the_configs_class_ends_nothing() -> None:
    model = routed()
    del model.config.eos_token_id
    model.config.eos_token_id = type(model.config)().eos_token_id  # 2, of any Llama
    model.generation_config = GenerationConfig()
    assert ends_of(model, byte_tokenizer()) == Ends((0,))


def test_lora_that_is_not_merged_changes_nothing_about_it() -> None:
    wrapped, tokenizer = load(shared_checkpoint())
    merged, _ = load(shared_checkpoint(), merge=True)
    for model in (wrapped, merged):
        model.generation_config.repetition_penalty = 5.0
    found = [generate(model, tokenizer, PROMPT).text for model in (wrapped, merged)]
    assert found[0] == found[1]


@pytest.mark.parametrize("sampling", [False, True])
def test_what_is_left_out_is_said(sampling: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "skipgpt")
    warn_left_out(GenerationConfig(eos_token_id=3, top_p=1.0, use_cache=False), sampling=sampling)
    assert not caplog.records
    settings = GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=1.3)
    warn_left_out(settings, sampling=sampling)
    said = "repetition_penalty=1.3" + ", temperature=0.6" * sampling
    assert f"generation_config sets {said}: left out" in caplog.text
