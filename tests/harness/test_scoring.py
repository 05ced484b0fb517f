"""Log-likelihoods and counts do not depend on how requests are batched and padded."""

from __future__ import annotations

import itertools
import logging
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

from cases import families_with
from skipgpt.config import RouterConfig
from skipgpt.errors import DataError
from skipgpt.evaluation.harness.keep_counts import sparsity_of
from skipgpt.evaluation.harness.scoring import BatchSize, Scored, Scorer
from skipgpt.model.state import execution, record_routing
from tiny import tiny_routed

ROUTERS = (None, RouterConfig(kv="skip"), RouterConfig(stand_in=4))
LENGTHS = [(9, 4), (3, 1), (20, 7), (1, 2), (12, 3), (5, 5), (20, 1)]


def pairs() -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations at random; the pad id is among the tokens."""
    draw = torch.Generator().manual_seed(3)
    return [
        tuple(torch.randint(0, 257, (n,), generator=draw).tolist() for n in lengths)
        for lengths in LENGTHS
    ]


def score(model: nn.Module, rows: int = 3, side: str = "right", **options: Any) -> list[Scored]:
    scorer = Scorer(model, 0, 128, BatchSize(rows, **{"automatic": False} | options), side)
    found = dict(scorer.score(pairs()))
    return [found[n] for n in range(len(LENGTHS))]


@torch.no_grad()
def by_hand(model: nn.Module) -> tuple[list[float], dict[str, float]]:
    """Request by request, unpadded; and the sparsity over all of them."""
    nats = []
    with record_routing(model) as trace:
        for context, rest in pairs():
            ids = [*context, *rest]
            scores = log_softmax(model(torch.tensor([ids[:-1]])).logits[0].double(), dim=-1)
            places = range(len(context), len(ids))
            nats.append(sum(scores[n - 1, ids[n]].item() for n in places))
    shares = {"attn": trace.sparsity("attn"), "mlp": trace.sparsity("mlp")}
    return nats, {"module": trace.sparsity(), **shares}


@families_with(
    "side, router",
    [*itertools.product(("left", "right"), ROUTERS)],
    names=("llama", "gpt2", "gemma2", "bloom"),
)
def test_padding_on_either_side_changes_nothing(
    family: str, side: str, router: RouterConfig | None
) -> None:
    model = tiny_routed(family, router)
    nats, shares = by_hand(model)
    found = score(model, len(LENGTHS), side)
    assert [each.nats for each in found] == pytest.approx(nats, abs=1e-4)
    measured = sparsity_of(model, [each.ran for each in found])
    assert {name: measured[name] for name in shares} == pytest.approx(shares, abs=1e-9)


@pytest.mark.parametrize("kind", ["gated", "sparse", "auto"])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_batch_size_changes_nothing(rows: int, kind: str) -> None:
    model = tiny_routed(initializer_range=0.2)
    nats, shares = by_hand(model)
    with execution(model, kind):
        found = score(model, rows)
    assert [each.nats for each in found] == pytest.approx(nats, abs=1e-4)
    assert sparsity_of(model, [each.ran for each in found])["module"] == pytest.approx(
        shares["module"], abs=1e-9
    )


def test_dense_execution_decides_nothing() -> None:
    model = tiny_routed(initializer_range=0.2)
    with execution(model, "dense"):
        found = score(model)
    assert {each.ran for each in found} == {None}
    assert sparsity_of(model, []) is None


def test_greedy_says_whether_greedy_decoding_would_give_the_continuation() -> None:
    model, prompt = tiny_routed(initializer_range=0.2), [5, 6, 7]
    out = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False)
    given = out[0, len(prompt) :].tolist()
    other = [*given[:-1], (given[-1] + 1) % 257]
    scorer = Scorer(model, 0, 128, BatchSize(4, False))
    found = dict(scorer.score([(prompt, given), (prompt, other)]))
    assert (found[0].greedy, found[1].greedy) == (True, False)


def test_requests_that_differ_in_the_last_token_share_a_row() -> None:
    model = tiny_routed(initializer_range=0.2)
    scorer = Scorer(model, 0, 128, BatchSize(8, False))
    alike = [([1, 2, 3], [4]), ([1, 2, 3], [5]), ([1, 2], [3, 9]), ([1], [2])]
    with mock.patch.object(model, "forward", wraps=model.forward) as forward:
        found = dict(scorer.score(alike))
    assert [call.kwargs["input_ids"].shape for call in forward.call_args_list] == [(2, 3)]
    alone = [dict(scorer.score([pair]))[0].nats for pair in alike]
    assert [found[n].nats for n in range(4)] == pytest.approx(alone, abs=1e-5)
    assert len({found[n].ran for n in range(3)}) == 1


def test_where_memory_is_too_small_batches_get_smaller(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_routed(initializer_range=0.2)
    expected = score(model)
    forward = Scorer._forward

    def small(self: Scorer, rows: Any, tails: Any) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return forward(self, rows, tails)

    with mock.patch.object(Scorer, "_forward", small):
        with caplog.at_level(logging.WARNING, "skipgpt"):
            found = score(model, 64, automatic=True)
        with pytest.raises(torch.OutOfMemoryError):
            score(model, 64)
    assert [e.nats for e in found] == pytest.approx([e.nats for e in expected], abs=1e-5)
    assert "7 rows do not fit into memory: 3 from now on" in caplog.text


def test_automatic_batches_hold_about_as_many_tokens_each() -> None:
    size = BatchSize(64, automatic=True)
    assert [size.rows(n) for n in (10, 128, 1024, 8192, 100_000)] == [64, 64, 8, 1, 1]
    assert BatchSize(64, automatic=False).rows(100_000) == 64


def test_a_request_longer_than_the_context_loses_its_beginning_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_routed(initializer_range=0.2)
    scorer = Scorer(model, 0, 16, BatchSize(4, False))
    context = list(range(1, 31))
    with caplog.at_level(logging.WARNING, "skipgpt"):
        found = dict(scorer.score([(context, [40, 41]), (context[:14], [40, 41])]))
    (kept,) = dict(scorer.score([(context[-15:], [40, 41])])).values()
    assert found[0].nats == pytest.approx(kept.nats, abs=1e-5)
    assert (found[0].cut, found[1].cut, kept.cut) == (True, False, False)
    assert "1 of 2 requests are longer than the model's context of 16 tokens" in caplog.text


@pytest.mark.parametrize("rest", [[], list(range(17))])
def test_a_continuation_that_cannot_be_scored_is_refused(rest: list[int]) -> None:
    scorer = Scorer(tiny_routed(), 0, 16, BatchSize(4, False))
    with pytest.raises(DataError, match=f"got {len(rest)} tokens after a context of 1"):
        list(scorer.score([([1], rest)]))
