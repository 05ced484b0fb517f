import pytest
import torch

from cases import Inputs, every_family, routed
from skipgpt.model.trace import execution


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@every_family
@torch.no_grad()
def test_inference_is_the_same_twice_in_training_and_evaluation_mode(
    family: str, kind: str
) -> None:
    model, inputs = routed(family), Inputs((3, 0, 6), padded=True)
    with execution(model, kind):
        results = []
        for mode in (False, False, True, True):
            model.train(mode)
            results.append(model(**inputs.given, use_cache=False).logits)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_inference_draws_no_random_number(mode: bool) -> None:
    model, inputs = routed().train(mode), Inputs((3, 0, 6), padded=True)
    before = torch.get_rng_state()
    model(**inputs.given)
    assert torch.equal(torch.get_rng_state(), before)
