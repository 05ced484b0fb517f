import pytest
import torch

from cases import CLOSE, Inputs, every_batch, routed
from conftest import FAMILY_NAMES
from skipgpt.model.trace import execution

# Transformers gives Gemma 2 no sdpa: its scores have a soft cap.
WITH_SDPA = [name for name in FAMILY_NAMES if name != "gemma2"]


@every_batch
@pytest.mark.parametrize("family", WITH_SDPA)
@torch.no_grad()
def test_eager_and_sdpa_agree(family: str, inputs: Inputs) -> None:
    eager, sdpa = routed(family, "eager"), routed(family, "sdpa")
    assert eager.config._attn_implementation != sdpa.config._attn_implementation
    expected = sdpa(**inputs.given).logits[inputs.real]
    for kind in ("gated", "sparse"):
        with execution(eager, kind):
            torch.testing.assert_close(eager(**inputs.given).logits[inputs.real], expected, **CLOSE)
