import torch

from cases import BATCHES, every_family, routed
from skipgpt.model.trace import execution, record_routing


@every_family
@torch.no_grad()
def test_a_batch_equals_its_rows(family: str) -> None:
    model, inputs = routed(family), BATCHES["three-rows"]
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
