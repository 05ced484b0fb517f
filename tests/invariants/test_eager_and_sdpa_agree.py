import torch

from cases import CLOSE, LEFT_PADDED, ONE_ROW, families, routed
from skipgpt.model.state import execution
from zoo import EAGER_ONLY, ZOO, family_name

# Falcon's alibi differs between the two in transformers itself.
WITH_BOTH = [n for n in ZOO if family_name(n) not in EAGER_ONLY and "alibi" not in n]


@families(WITH_BOTH)
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
