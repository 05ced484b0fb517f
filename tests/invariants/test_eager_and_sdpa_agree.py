import torch

from cases import CLOSE, LEFT_PADDED, ONE_ROW, layouts, routed
from skipgpt.model.state import execution
from zoo import EAGER_ONLY

# Falcon's alibi differs between the two in transformers itself.
WITHOUT_BOTH = EAGER_ONLY | {"falcon/alibi", "falcon/alibi-parallel"}


@layouts(but=WITHOUT_BOTH)
@torch.no_grad()
def test_eager_and_sdpa_agree(family: str) -> None:
    eager, sdpa = routed(family, "eager"), routed(family, "sdpa")
    assert eager.config._attn_implementation != sdpa.config._attn_implementation
    for inputs in (ONE_ROW, LEFT_PADDED):
        expected = sdpa(**inputs.given).logits[inputs.real]
        for kind in ("gated", "sparse"):
            with execution(eager, kind):
                actual = eager(**inputs.given).logits[inputs.real]
            torch.testing.assert_close(actual, expected, **CLOSE)
