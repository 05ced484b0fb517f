"""Drafts change no token."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cases import base
from decodings import lengths
from running.ways import (
    SAMPLING,
    check_logits,
    chosen_by_hand,
    every_policy,
    every_way,
    generated,
    has_windows,
    needs_transformers,
    prompt,
    sparse_model,
)
from skipgpt.model.state import execution, record_routing


@every_way
@every_policy
@torch.no_grad()
def test_a_dense_assistants_drafts_change_no_token(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    with record_routing(model) as trace:
        output = generated(model, prompt(), **_drafting(base(family)), **_tokens(12))
    assert torch.equal(output.sequences, chosen_by_hand(model, prompt(), tokens=12))
    check_logits(model, output)
    assert max(lengths(trace)[1:]) > 1, "nothing was drafted, so nothing was cropped"


@every_way
@every_policy
@torch.no_grad()
def test_drafts_are_taken_where_right_and_cropped_where_wrong(family: str, kv: str) -> None:
    model, assistant = sparse_model(family, kv), sparse_model(family, kv)
    assistant.get_output_embeddings().register_forward_hook(_miss_every_third_token())
    with record_routing(model) as trace:
        output = generated(model, prompt(), **_drafting(assistant), **_tokens(12))
    assert torch.equal(output.sequences, chosen_by_hand(model, prompt(), tokens=12))
    check_logits(model, output)
    forwards = len(trace.steps)
    taken, drafted = 12 - forwards, sum(lengths(trace)) - 11 - (forwards - 1)
    assert 0 < taken < drafted - 1


@every_way
@every_policy
@torch.no_grad()
def test_drafts_looked_up_in_the_prompt_change_no_token(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    # A greedy text, once more: its continuation is to be found in the prompt.
    text = chosen_by_hand(model, prompt(), tokens=8)
    ids = torch.cat([text, text[:, :9]], dim=1)
    plain = chosen_by_hand(model, ids)
    with record_routing(model) as trace:
        output = generated(model, ids, prompt_lookup_num_tokens=3)
    assert torch.equal(output.sequences, plain)
    check_logits(model, output, prompt_tokens=ids.shape[1])
    assert max(lengths(trace)) > 1


@every_way
@every_policy
@torch.no_grad()
def test_sampling_with_drafts_is_the_same_in_both_executions(family: str, kv: str) -> None:
    model, assistant = sparse_model(family, kv), base(family)
    how = SAMPLING | _drafting(assistant)
    sparse = generated(model, prompt(), **how)
    with execution(model, "gated"):
        gated = generated(model, prompt(), **how)
    assert torch.equal(sparse.sequences, gated.sequences)
    check_logits(model, sparse)


def _drafting(assistant: Any, tokens: int = 3) -> dict[str, Any]:
    if has_windows(assistant):
        needs_transformers("5.18", "drafts by an assistant of sliding windows")
    settings = assistant.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = tokens, "constant"
    settings.assistant_confidence_threshold = 0.0  # a random model is never confident
    return {"assistant_model": assistant}


def _miss_every_third_token() -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A hook on the last layer of an assistant that is right otherwise."""
    calls = itertools.count()
    return lambda _, __, logits: logits.roll(1, -1) if next(calls) % 3 == 2 else logits


def _tokens(new: int) -> dict[str, int]:
    return {"max_new_tokens": new, "min_new_tokens": new}
