"""An answer that is kept is found again by the model that gave it, and by no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from skipgpt.evaluation.harness.model import RoutedLM
from skipgpt.evaluation.harness.response_cache import answers_key
from skipgpt.model.loading.fingerprint import fingerprint, weights_digest
from skipgpt.model.state import routing_state
from skipgpt.routing.decision import Threshold
from tiny import byte_tokenizer, tiny_base, tiny_routed

ASKED = [
    Instance("loglikelihood", {}, each, n, ("task", n, 1))
    for n, each in enumerate([("a cat", " sat"), ("a dog", " ran"), ("", "two")])
]


def lm(threshold: float = 0.0, **options: Any) -> RoutedLM:
    model = tiny_routed(initializer_range=0.2)
    routing_state(model).rule = Threshold(threshold)
    return RoutedLM(model, byte_tokenizer(), **options)


def test_another_sparsity_is_not_given_the_answers_of_the_first(tmp_path: Path) -> None:
    alone = {at: lm(at).loglikelihood(ASKED) for at in (-10.0, 0.0)}
    assert alone[-10.0] != alone[0.0]
    for at in (0.0, -10.0, 0.0):  # the last time from the database
        model = lm(at)
        kept = CachingLM(model, str(tmp_path / "kept.db"))
        assert [each[0] for each in kept.loglikelihood(ASKED)] == pytest.approx(
            [each[0] for each in alone[at]]
        )
        assert len(model.notes) == len(ASKED)
    model.scorer.score = None  # type: ignore[method-assign,assignment]
    assert kept.loglikelihood(ASKED)


def test_sparsity_beside_kept_answers_is_that_of_their_own_model(tmp_path: Path) -> None:
    for at in (10.0, -10.0):
        model = lm(at)
        CachingLM(model, str(tmp_path / "kept.db")).loglikelihood(ASKED)
    assert model.sparsity_over()["module"] == 0  # everything is kept


def test_the_key_changes_with_all_that_answers_depend_on() -> None:
    def changed(what: str) -> RoutedLM:
        made = lm(**({"max_length": 64} if what == "context" else {}))
        state, model = routing_state(made.model), made.model
        if what == "rule":
            state.rule = Threshold(0.5)
        if what == "execution":
            state.execution = "dense"
        if what == "config":
            model.config.rms_norm_eps *= 2
        if what == "one weight":
            with torch.no_grad():
                model.get_input_embeddings().weight[3, 5] += 1
        if what == "a router":
            with torch.no_grad():
                next(p for n, p in model.named_parameters() if "router" in n).flatten()[0] += 1
        if what == "special tokens":
            made.tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
        if what == "end of a turn":
            model.generation_config.eos_token_id = 7
        return made

    names = ("", "rule", "execution", "config", "one weight", "a router", "special tokens",
             "end of a turn", "context")  # fmt: skip
    keys = {name: answers_key(changed(name)) for name in names}
    assert len(set(keys.values())) == len(names), keys
    assert answers_key(lm()) == keys[""]


def test_digests_see_a_value_that_samples_do_not() -> None:
    model = tiny_base()
    before = fingerprint(model), weights_digest(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 1] += 1
    samples, others = (each.split("-") for each in (fingerprint(model), before[0]))
    assert samples[0] == others[0]
    assert samples[1] != others[1]
    assert weights_digest(model) != before[1]


def test_a_text_without_context_is_not_predicted_from_a_token_of_turns() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    assert RoutedLM(tiny_routed(), tokenizer).prefix_token_id == 0  # <|endoftext|>
    assert RoutedLM(tiny_routed(), tokenizer, prefix_token_id=5).prefix_token_id == 5


def test_bos_stands_before_a_prompt_of_the_harness_as_asked_for() -> None:
    plain = byte_tokenizer()("cat")["input_ids"]
    for asked, expected in ((None, plain), (False, plain), (True, [0, *plain])):
        made = RoutedLM(tiny_routed(), byte_tokenizer(), add_bos_token=asked)
        assert made.tok_encode("cat") == expected
        assert made.tok_encode("<|endoftext|>cat").count(0) == 1  # never twice
