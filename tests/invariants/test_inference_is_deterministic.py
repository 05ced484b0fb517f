import pytest
import torch

from cases import LEFT_PADDED, layouts, routed
from skipgpt.model.state import execution


@layouts(but={"phimoe"})  # whose choice of experts is random in training mode
@torch.no_grad()
def test_inference_is_the_same_twice_in_training_and_evaluation_mode(family: str) -> None:
    model = routed(family)
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            results = []
            for mode in (False, False, True, True):
                model.train(mode)
                results.append(model(**LEFT_PADDED.given, use_cache=False).logits)
        assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_inference_draws_no_random_number(mode: bool) -> None:
    model, inputs = routed().train(mode), LEFT_PADDED
    before = torch.get_rng_state()
    model(**inputs.given)
    assert torch.equal(torch.get_rng_state(), before)
