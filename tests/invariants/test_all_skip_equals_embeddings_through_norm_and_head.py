import pytest
import torch

from cases import CLOSE, Inputs, every_batch, every_family, routed
from skipgpt.model.trace import deciding, execution
from skipgpt.routing.decision import Forced


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@every_batch
@every_family
@torch.no_grad()
def test_all_skip_equals_embeddings_through_norm_and_head(
    family: str, inputs: Inputs, kind: str
) -> None:
    model = routed(family)
    expected = model.lm_head(model.model.norm(model.get_input_embeddings()(inputs.ids)))
    if cap := getattr(model.config, "final_logit_softcapping", None):
        expected = torch.tanh(expected / cap) * cap

    with deciding(model, Forced(default=False)), execution(model, kind):
        logits = model(**inputs.given).logits

    torch.testing.assert_close(logits, expected, **CLOSE)
