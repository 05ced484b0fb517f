"""Continuations against plain transformers: its own `generate` of the base, its own losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from runs import rows
from skipgpt.errors import ConfigError, DataError
from skipgpt.evaluation import continuations
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


@pytest.fixture(params=[16])
def tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many tokens a prompt has, and its continuation."""
    for name in ("PROMPT_TOKENS", "NEW_TOKENS"):
        monkeypatch.setattr(continuations, name, request.param)
    return request.param


def prompts(tokens: int) -> torch.Tensor:
    return rows(3, tokens)


def pair(tokens: int) -> tuple[nn.Module, nn.Module]:
    """A base model and the same with routers that skip about half."""
    settings = {"initializer_range": 0.2, "max_position_embeddings": 2 * tokens}
    return tiny_base(**settings), tiny_routed(**settings)


def by_transformers(base: nn.Module, tokens: int) -> torch.Tensor:
    """[B, tokens] greedy, whatever token ends a text."""
    return base.generate(
        prompts(tokens),
        attention_mask=torch.ones(3, tokens),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
    )[:, tokens:]


def loss_of(base: nn.Module, texts: torch.Tensor) -> float:
    """Nats per token of texts behind prompts as long, one token after another."""
    nll, tokens = 0.0, texts.shape[1]
    for prompt, text in zip(prompts(tokens), texts, strict=True):
        ids = torch.cat([prompt, text])
        logits = base(ids[None]).logits[0].double()
        for place in range(tokens, 2 * tokens):
            nll -= logits[place - 1].log_softmax(-1)[ids[place]].item()
    return nll / texts.numel()


@pytest.mark.parametrize(("batch_size", "tokens"), [(1, 16), (2, NEW_TOKENS)], indirect=["tokens"])
def test_both_models_are_judged_by_the_base(batch_size: int, tokens: int) -> None:
    base, model = pair(tokens)
    own, routed = by_transformers(base, tokens), greedy(model, prompts(tokens), tokens)
    found = measure_continuations(model, list(prompts(tokens)), 3, model, batch_size=batch_size)
    assert found.count == 3
    assert found.dense_nll_per_token == pytest.approx(loss_of(base, own), rel=1e-5)
    assert found.nll_per_token == pytest.approx(loss_of(base, routed), rel=1e-5)
    assert found.nll_per_token > found.dense_nll_per_token
    equal = [next((i for i in range(tokens) if a[i] != b[i]), tokens)
             for a, b in zip(own, routed, strict=True)]  # fmt: skip
    assert found.same == pytest.approx(sum(equal) / 3 / tokens)


def test_a_model_that_skips_nothing_writes_what_its_base_writes(tokens: int) -> None:
    base, model = pair(tokens)
    with execution(model, "dense"):
        found = measure_continuations(model, list(prompts(tokens)), 3, base)
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
    _, model = pair(PROMPT_TOKENS)
    first, second, third = prompts(PROMPT_TOKENS)
    short = [first, second, third[:-1]]
    with pytest.raises(DataError, match="continuing 3 rows of text: got 2 rows of 64 tokens"):
        measure_continuations(model, short, 3, model)


def test_no_dense_model_no_continuations(tokens: int) -> None:
    _, model = pair(tokens)
    text = CutText(Form("blocks", tokens), [Span(row) for row in prompts(tokens)])
    with pytest.raises(ConfigError, match="leave --no-closeness out"):
        measure_text(model, text, continuations=2)
    found = measure_text(model, text, closeness_to=model, continuations=2)
    assert found.continuations is not None
    assert found.to_dict()["continuations"]["count"] == 2
    assert f"2 greedy continuations of {tokens} tokens" in str(found)
    assert math.isfinite(found.continuations.nll_per_token)
