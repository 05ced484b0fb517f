"""Attention of packed queries in blocks, against the same with a mask."""

from __future__ import annotations

import pytest
import torch

from cases import BATCHES, CLOSE, ONE_ROW, SITES, base, every_layout, routed
from skipgpt.model.attention import flat
from skipgpt.model.attention.flat import CausalQueries, can_use
from skipgpt.model.execution import run
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import remove_routers, routed_layers
from skipgpt.routing.decision import Forced


def test_blocks_need_the_keys_up_to_their_last_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "BLOCK", 2)
    queries = CausalQueries(torch.tensor([1, 4, 5, 0, 2]), [3, 0, 2])
    first, second, third = queries.blocks()
    assert [each[:2] for each in (first, second, third)] == [
        (slice(0, 2), 0),
        (slice(2, 3), 0),
        (slice(3, 5), 2),
    ]
    assert first[2].tolist() == [[True, True, False, False, False], [True] * 5]
    assert second[2].tolist() == [[True] * 6]
    assert third[2].tolist() == [[True, False, False], [True] * 3]


@pytest.mark.parametrize("block", [1, 3, 64])
def test_blocks_equal_one_mask(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "BLOCK", block)
    torch.manual_seed(0)
    columns, counts = torch.tensor([0, 1, 4, 5, 9, 2, 3, 7, 8]), [5, 4]
    sizes = ((1, 4, 9), (2, 2, 10), (2, 2, 10))
    given = [torch.randn(*size, 8, requires_grad=True) for size in sizes]
    query, key, value = given
    got = CausalQueries(columns, counts).attend(query, key, value, scaling=0.3)
    parts = []
    for row, mine in enumerate(torch.split(torch.arange(9), counts)):
        mask = torch.arange(10) <= columns[mine, None]
        scores = 0.3 * query[:, :, mine] @ key[[row]].repeat_interleave(2, 1).mT
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        parts.append((weights @ value[[row]].repeat_interleave(2, 1)).transpose(1, 2))
    wanted = torch.cat(parts, 1)
    torch.testing.assert_close(got, wanted, rtol=0.0, atol=1e-6)
    weight = torch.randn_like(wanted)
    for mine, other in zip(
        torch.autograd.grad((got * weight).sum(), given),
        torch.autograd.grad((wanted * weight).sum(), given),
        strict=True,
    ):
        # Sums of up to ten terms near 1.
        torch.testing.assert_close(mine, other, rtol=0.0, atol=5e-6)


@every_layout
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_a_familys_sparse_prefill_in_blocks_equals_gated(
    family: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = routed(family)
    drawn = torch.Generator().manual_seed(3)
    ids = ONE_ROW.given["input_ids"].roll(1).expand(rows, -1)
    keep = torch.rand(rows, ONE_ROW.tokens, generator=drawn) < 0.6
    keep[1:2] = False  # a sequence without a query
    keep[2:] = True
    logits = []
    for block in (3, 64):
        monkeypatch.setattr(flat, "BLOCK", block)
        with use_rule(model, Forced(dict.fromkeys(SITES, keep))), execution(model, "sparse"):
            logits.append(model(ids).logits)
    with use_rule(model, Forced(dict.fromkeys(SITES, keep))), execution(model, "gated"):
        logits.append(model(ids).logits)
    torch.testing.assert_close(logits[0], logits[2], **CLOSE)
    torch.testing.assert_close(logits[1], logits[2], **CLOSE)


def test_blocks_are_for_plainly_causal_attention() -> None:
    layer, mask = routed_layers(routed("llama"))[0], torch.ones(1, 1, 2, 2, dtype=torch.bool)
    assert can_use(layer, 2, {"attention_mask": None})
    assert not can_use(layer, 2, {"attention_mask": mask})
    assert not can_use(layer, 2, {"attention_mask": None, "is_causal": False})
    eager = routed_layers(routed("llama", "eager"))[0]
    assert not can_use(eager, 2, {"attention_mask": None})


def test_blocks_pass_on_dropout() -> None:
    columns = torch.tensor([0, 2, 3])
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 4, 8)
    got = CausalQueries(columns, [3]).attend(query, key, key, dropout=1.0)
    assert not got.any()


@torch.no_grad()
def test_blocks_run_where_they_suit_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(run, "take_mask", lambda *given: seen.append(given) or None)
    model = routed("llama")
    model(ONE_ROW.given["input_ids"])
    assert not seen
    remove_routers(model)
    torch.testing.assert_close(
        model(ONE_ROW.given["input_ids"]).logits, base("llama")(ONE_ROW.given["input_ids"]).logits
    )


@pytest.mark.parametrize("batch", ["one-row", "three-rows"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("own", "asked", "causal"),
    [(False, None, False), (True, False, False), (False, True, True), (True, None, True)],
)
@torch.no_grad()
def test_queries_see_later_keys_where_they_do_in_gated(
    own: bool, asked: bool | None, causal: bool, attention: str, batch: str
) -> None:
    """Of what a module says of itself and what the call asks for, the latter counts."""
    model, ids = routed("llama", attention), BATCHES[batch].ids
    for layer in routed_layers(model):
        layer.self_attn.is_causal = own
    arguments = {} if asked is None else {"is_causal": asked}
    with execution(model, "gated"):
        expected = model(ids, use_cache=False, **arguments).logits
    got = model(ids, use_cache=False, **arguments).logits
    torch.testing.assert_close(got, expected, **CLOSE)
    if attention == "eager" and asked is None:
        return  # transformers makes eager attention a causal mask, whatever the module says
    changed = ids.clone()
    changed[:, -1] += 1
    moved = model(changed, use_cache=False, **arguments).logits[:, 0] - got[:, 0]
    assert bool(moved.abs().max() > 1e-2) is not causal
