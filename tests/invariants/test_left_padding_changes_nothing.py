import pytest
import torch

from cases import CLOSE, LEFT_PADDED, Inputs, every_family, routed
from skipgpt.model.trace import execution, record_routing


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@pytest.mark.parametrize("positions", ["counted from the padding", "counted from the text"])
@every_family
@torch.no_grad()
def test_left_padding_changes_nothing(family: str, positions: str, kind: str) -> None:
    model = routed(family)
    given = dict(LEFT_PADDED.given)
    if positions == "counted from the text":  # as generate does
        given["position_ids"] = (LEFT_PADDED.real.cumsum(1) - 1).clamp(min=0)
    with execution(model, kind):
        padded = model(**given).logits
        for row, real, ids in zip(padded, LEFT_PADDED.real, LEFT_PADDED.rows(), strict=True):
            torch.testing.assert_close(row[real], model(ids[None]).logits[0], **CLOSE)


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@every_family
@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(family: str, kind: str) -> None:
    model = routed(family)
    given = dict(LEFT_PADDED.given)
    with execution(model, kind):
        expected = model(**given).logits[LEFT_PADDED.real]
        given["input_ids"] = torch.where(LEFT_PADDED.real, given["input_ids"], 99)
        torch.testing.assert_close(model(**given).logits[LEFT_PADDED.real], expected, **CLOSE)


@every_family
@torch.no_grad()
def test_left_padding_changes_no_decision_and_no_sparsity(family: str) -> None:
    model, padded, alone = routed(family), Inputs((3,), padded=True), Inputs((0,), False, tokens=8)
    with record_routing(model) as with_padding:
        model(**padded.given)
    with record_routing(model) as without:
        model(padded.rows()[0][None])
    assert alone.tokens == len(padded.rows()[0])
    assert with_padding.keep_counts() == without.keep_counts()
    assert with_padding.sparsity() == without.sparsity()
