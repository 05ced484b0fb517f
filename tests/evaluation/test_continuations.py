"""Continuations against plain transformers: its own `generate` of the base, its own losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from runs import rows
from skipgpt.errors import ConfigError, DataError
from skipgpt.evaluation.continuations import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    greedy,
    measure_continuations,
    repetition,
)
from skipgpt.evaluation.protocols import CutText, Form
from skipgpt.evaluation.text_result import measure_text
from skipgpt.evaluation.windows import Span
from skipgpt.model.state import execution
from tiny import tiny_base, tiny_routed

LENGTH = PROMPT_TOKENS + NEW_TOKENS


def prompts() -> torch.Tensor:
    return rows(3, PROMPT_TOKENS)


def pair() -> tuple[nn.Module, nn.Module]:
    """A base model and the same with routers that skip about half."""
    settings = {"initializer_range": 0.2, "max_position_embeddings": LENGTH}
    return tiny_base(**settings), tiny_routed(**settings)


def by_transformers(base: nn.Module) -> torch.Tensor:
    """[B, NEW_TOKENS] greedy, whatever token ends a text."""
    return base.generate(
        prompts(),
        attention_mask=torch.ones(3, PROMPT_TOKENS),
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )[:, PROMPT_TOKENS:]


def loss_of(base: nn.Module, texts: torch.Tensor) -> float:
    """Nats per token of texts behind the prompts, one token after another."""
    nll = 0.0
    for prompt, text in zip(prompts(), texts, strict=True):
        ids = torch.cat([prompt, text])
        logits = base(ids[None]).logits[0].double()
        for place in range(PROMPT_TOKENS, LENGTH):
            nll -= logits[place - 1].log_softmax(-1)[ids[place]].item()
    return nll / texts.numel()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_both_models_are_judged_by_the_base(batch_size: int) -> None:
    base, model = pair()
    own, routed = by_transformers(base), greedy(model, prompts(), NEW_TOKENS)
    found = measure_continuations(model, list(prompts()), 3, model, batch_size=batch_size)
    assert found.count == 3
    assert found.dense_nll_per_token == pytest.approx(loss_of(base, own), rel=1e-5)
    assert found.nll_per_token == pytest.approx(loss_of(base, routed), rel=1e-5)
    assert found.nll_per_token > found.dense_nll_per_token
    equal = [next((i for i in range(NEW_TOKENS) if a[i] != b[i]), NEW_TOKENS)
             for a, b in zip(own, routed, strict=True)]  # fmt: skip
    assert found.same == pytest.approx(sum(equal) / 3 / NEW_TOKENS)


def test_a_model_that_skips_nothing_writes_what_its_base_writes() -> None:
    base, model = pair()
    with execution(model, "dense"):
        found = measure_continuations(model, list(prompts()), 3, base)
    assert found.same == 1
    assert found.nll_per_token == found.dense_nll_per_token
    assert found.repetition == found.dense_repetition


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], 0.0),
        ([7] * 8, 4 / 5),  # five 4-grams, four of them stood there before
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        ([1, 2], 0.0),
    ],
)
def test_repetition_is_the_share_of_ngrams_seen_before(text: list[int], expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


def test_too_little_text_is_refused() -> None:
    _, model = pair()
    short = [*prompts()[:2], prompts()[2][:-1]]
    with pytest.raises(DataError, match="continuing 3 rows of text: got 2 rows of 64 tokens"):
        measure_continuations(model, short, 3, model)


def test_no_dense_model_no_continuations() -> None:
    _, model = pair()
    text = CutText(Form("blocks", PROMPT_TOKENS), [Span(row) for row in prompts()])
    with pytest.raises(ConfigError, match="leave --no-closeness out"):
        measure_text(model, text, continuations=2)
    found = measure_text(model, text, closeness_to=model, continuations=2)
    assert found.continuations is not None
    assert found.to_dict()["continuations"]["count"] == 2
    assert "2 greedy continuations of 64 tokens" in str(found)
    assert math.isfinite(found.continuations.nll_per_token)
