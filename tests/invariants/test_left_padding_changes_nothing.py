import pytest
import torch

from cases import CLOSE, LEFT_PADDED, Inputs, every_layout, routed
from skipgpt.model.state import execution, record_routing


@every_layout
@torch.no_grad()
def test_left_padding_changes_nothing(family: str) -> None:
    model = routed(family)
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            padded = model(**LEFT_PADDED.given).logits
            for row, real, ids in zip(padded, LEFT_PADDED.real, LEFT_PADDED.rows(), strict=True):
                torch.testing.assert_close(row[real], model(ids[None]).logits[0], **CLOSE)


@pytest.mark.parametrize("decides", ["module", "layer", "sequence"])
@every_layout
@torch.no_grad()
def test_left_padding_changes_nothing_with_stand_ins_whoever_decides(
    family: str, decides: str
) -> None:
    model = routed(family, stand_in=3, decides=decides)
    padded = model(**LEFT_PADDED.given).logits
    for row, real, ids in zip(padded, LEFT_PADDED.real, LEFT_PADDED.rows(), strict=True):
        torch.testing.assert_close(row[real], model(ids[None]).logits[0], **CLOSE)


@torch.no_grad()
def test_nor_does_it_where_rotary_positions_count_from_the_padding() -> None:
    model = routed("llama")
    padded = model(**LEFT_PADDED.prompt).logits
    for row, real, ids in zip(padded, LEFT_PADDED.real, LEFT_PADDED.rows(), strict=True):
        torch.testing.assert_close(row[real], model(ids[None]).logits[0], **CLOSE)


@every_layout
@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(family: str) -> None:
    model = routed(family)
    for kind in ("gated", "sparse"):
        given = dict(LEFT_PADDED.given)
        with execution(model, kind):
            expected = model(**given).logits[LEFT_PADDED.real]
            given["input_ids"] = torch.where(LEFT_PADDED.real, given["input_ids"], 99)
            torch.testing.assert_close(model(**given).logits[LEFT_PADDED.real], expected, **CLOSE)


@every_layout
@torch.no_grad()
def test_left_padding_changes_no_decision_and_no_sparsity(family: str) -> None:
    model, padded = routed(family), Inputs((3,), padded=True)
    with record_routing(model) as with_padding:
        model(**padded.given)
    with record_routing(model) as without:
        model(padded.rows()[0][None])
    assert with_padding.counts().kept() == without.counts().kept()
    assert with_padding.counts().tokens == without.counts().tokens
    assert with_padding.sparsity() == without.sparsity()
