"""Many kept tokens run an MLP in parts, which changes nothing."""

from __future__ import annotations

import pytest
import torch

from cases import CLOSE, LEFT_PADDED, every_layout, routed
from skipgpt.model.execution import run
from skipgpt.model.state import execution, record_routing


@every_layout
@pytest.mark.parametrize("rows", [1, 4])
@torch.no_grad()
def test_parts_give_what_gated_gives(
    family: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = routed(family), LEFT_PADDED
    with execution(model, "gated"), record_routing(model) as trace:
        expected = model(**inputs.given).logits
    kept = max(int(keep.sum()) for keep in trace.steps[0].keeps("mlp"))
    assert kept > 2 * rows
    monkeypatch.setattr(run, "ROWS", rows)
    got = model(**inputs.given).logits
    torch.testing.assert_close(got[inputs.real], expected[inputs.real], **CLOSE)


@torch.no_grad()
def test_the_stream_that_came_in_is_not_written_to() -> None:
    model = routed("llama")
    output = model(**LEFT_PADDED.given, output_hidden_states=True)
    with execution(model, "gated"):
        expected = model(**LEFT_PADDED.given, output_hidden_states=True)
    real = LEFT_PADDED.real
    for got, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(got[real], wanted[real], **CLOSE)
