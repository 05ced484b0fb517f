"""Sequences that decode one token each attend apart: those that keep, in their own keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cases import BATCHES, CLOSE, Inputs, every_layout, routed
from skipgpt.model.attention.flat import RowQueries, can_use
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import Forced, RandomRoutes, Site

NO_MASK = {"attention_mask": None}


@given(st.sets(st.integers(0, 12), min_size=1).map(sorted))
def test_runs_are_neighbours_and_cover_all(rows: list[int]) -> None:
    runs = list(RowQueries(rows, None).runs())
    assert [n for chosen, _ in runs for n in range(chosen.start, chosen.stop)] == list(
        range(len(rows))
    )
    assert [row for _, each in runs for row in range(each.start, each.stop)] == rows
    ends = [each.stop for _, each in runs]
    starts = [each.start for _, each in runs]
    assert all(start > end for start, end in zip(starts[1:], ends[:-1], strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [[0], [1, 2, 4], [0, 1, 2, 3, 4]])
def test_each_query_attends_in_its_own_keys(rows: list[int], masked: bool) -> None:
    query, keys, values = torch.randn(1, 4, len(rows), 8), *torch.randn(2, 5, 2, 7, 8)
    mask = torch.rand(5, 1, 1, 7) > 0.4 if masked else None
    if mask is not None:
        mask[..., 0] = True
    got = RowQueries(rows, mask).attend(query, keys, values, scaling=0.3)
    for n, row in enumerate(rows):
        expected = scaled_dot_product_attention(
            query[:, :, n : n + 1],
            keys[row : row + 1],
            values[row : row + 1],
            attn_mask=None if mask is None else mask[row : row + 1],
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(got[:, n], expected[:, :, 0], rtol=1e-5, atol=1e-6)


def test_dropout_drops() -> None:
    query, keys, values = torch.randn(1, 4, 2, 8), *torch.randn(2, 2, 2, 7, 8)
    assert not RowQueries([0, 1], None).attend(query, keys, values, dropout=1.0).any()


def decoded(model: nn.Module, inputs: Inputs) -> Tensor:
    """Logits of the last three tokens, each after a cache of all before."""
    torch.manual_seed(5)
    cache, logits = None, []
    for start, end in ((0, 8), (8, 9), (9, 10), (10, 11)):
        output = model(**inputs.chunk(start, end), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[:, -1])
    return torch.stack(logits[1:], 1)


@every_layout
@pytest.mark.parametrize("batch", ["three-rows", "three-rows-left-padded"])
@torch.no_grad()
def test_decoding_gives_what_gated_gives(
    family: str, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, apart = routed(family), BATCHES[batch], []
    runs = RowQueries.runs

    def watched(queries: RowQueries) -> Iterator[tuple[slice, slice]]:
        apart.append(queries.rows)
        return runs(queries)

    monkeypatch.setattr(RowQueries, "runs", watched)
    with use_rule(model, RandomRoutes(0.5)):
        got = decoded(model, inputs)
        with execution(model, "gated"):
            expected = decoded(model, inputs)
    torch.testing.assert_close(got, expected, **CLOSE)
    if can_use(routed_layers(model)[0], 1, NO_MASK):
        assert apart
        assert all(0 < len(rows) < 3 for rows in apart)


@torch.no_grad()
def test_nobody_or_everybody_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowQueries, "runs", None)
    model, inputs = routed("llama"), BATCHES["three-rows"]
    for keep in (False, True):
        routes = Forced({Site(layer, "attn"): keep for layer in range(3)})
        with use_rule(model, routes):
            got = decoded(model, inputs)
            with execution(model, "gated"):
                torch.testing.assert_close(got, decoded(model, inputs), **CLOSE)


def test_other_masks_and_attentions_are_for_packing() -> None:
    layer = routed_layers(routed("llama"))[0]
    assert can_use(layer, 1, NO_MASK)
    assert not can_use(layer, 1, {"attention_mask": torch.ones(3, 7)})
    assert not can_use(routed_layers(routed("llama", "eager"))[0], 1, NO_MASK)
