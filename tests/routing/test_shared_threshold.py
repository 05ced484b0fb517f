"""Batched decoding by shared decisions: the mean cost of a batch decides, for all or for none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import CLOSE, ONE_ROW, routed
from conftest import examples
from skipgpt.model.state import count_routing, execution, record_routing, use_rule
from skipgpt.routing.decision import KEEP_ALL, SharedThreshold, Site, Threshold

SITE = Site(0, "mlp")


def test_the_tokens_at_one_position_decide_by_their_mean_cost() -> None:
    costs = np.array([[1.0, 9.0, 2.0], [3.0, 0.1, 2.0]])
    margins = torch.tensor(np.log(costs))
    for cut in (1.5, 2.5, 5.0):
        decision = SharedThreshold(float(np.log(cut)))(margins, SITE)
        expected = np.broadcast_to(costs.mean(0) > cut, costs.shape)
        assert decision.keep.tolist() == expected.tolist()
        assert decision.gate.tolist() == expected.astype(float).tolist()
        np.testing.assert_allclose(decision.margin[0].exp(), costs.mean(0), rtol=1e-6)


def test_prompts_are_read_by_token() -> None:
    rule = SharedThreshold(0.0, prompt=Threshold(1.0))
    margins = torch.tensor([[0.5, 2.0], [3.0, -1.0]])
    assert rule(margins, SITE).keep.tolist() == [[False, True], [True, False]]
    assert rule(margins[:, :1], SITE).keep.tolist() == [[True], [True]]


@examples(25, 200)
@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=8), st.floats(-30, 30, width=32))
def test_floats_decide_as_tensors_do(margins: list[float], value: float) -> None:
    rule = SharedThreshold(value)
    shared = torch.tensor(margins, dtype=torch.float64).logsumexp(0) - np.log(len(margins))
    if abs(float(shared) - value) < 1e-4:
        return  # as close as float32 comes
    expected = rule(torch.tensor(margins)[:, None], SITE).keep[:, 0].tolist()
    assert rule.keeps(margins, SITE) == expected


def test_a_batch_of_one_decides_as_by_token() -> None:
    margins = torch.tensor([[-1.0, 0.2, 3.0]])
    shared, alone = SharedThreshold(0.1)(margins, SITE), Threshold(0.1)(margins, SITE)
    assert shared.keep.tolist() == alone.keep.tolist()


@pytest.mark.parametrize("kind", ["auto", "sparse"])
@torch.no_grad()
def test_a_decode_step_runs_what_the_definition_runs(kind: str) -> None:
    """Reading all tokens at once by `gated` and decoding them one by one give the same."""
    model = routed("llama")
    ids = ONE_ROW.given["input_ids"]
    batch = torch.cat([ids, ids.flip(1), ids.roll(3, 1)])
    with record_routing(model) as trace:
        model(batch)
    middle = trace.margins().median().item()
    with use_rule(model, SharedThreshold(middle)), execution(model, "gated"):
        expected = model(batch).logits
    rule, cache, got = SharedThreshold(middle), None, []
    with use_rule(model, rule), execution(model, kind), count_routing(model) as counts:
        for token in batch.split(1, dim=1):
            output = model(token, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            got.append(output.logits)
    torch.testing.assert_close(torch.cat(got, 1), expected, **CLOSE)
    assert 0 < counts.sparsity() < 1
    assert all(kept % len(batch) == 0 for kept in counts.kept().values())
    assert KEEP_ALL.value < middle
