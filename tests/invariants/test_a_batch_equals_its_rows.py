import pytest
import torch
from torch import nn

from cases import BATCHES, every_layout, families, routed
from skipgpt.model.state import execution, record_routing


@every_layout
def test_a_batch_equals_its_rows(family: str) -> None:
    _compare(routed(family))


@pytest.mark.parametrize("decides", ["module", "layer", "sequence"])
@families(["llama", "gemma3_text", "cohere2", "mixtral"])
def test_a_batch_equals_its_rows_with_stand_ins_whoever_decides(family: str, decides: str) -> None:
    _compare(routed(family, stand_in=3, decides=decides))


@torch.no_grad()
def _compare(model: nn.Module) -> None:
    inputs = BATCHES["three-rows"]
    for kind in ("gated", "sparse"):
        with execution(model, kind), record_routing(model) as trace:
            together = model(inputs.ids).logits
            alone = torch.cat([model(row[None]).logits for row in inputs.ids])
        # Three rows and one are products of other shapes, whose sums are cut elsewhere, by the
        # number of threads too: measured up to 1.2e-5 where logits reach 9.
        torch.testing.assert_close(together, alone, rtol=0, atol=3e-5)

        batch, *singles = trace.steps
        for n, keep in enumerate(batch.keeps()):
            assert torch.equal(keep, torch.cat([single.keeps()[n] for single in singles]))
