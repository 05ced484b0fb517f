import pytest
import torch

from cases import LEFT_PADDED, every_family
from running.ways import GREEDY, every_policy, prompt, sparse_model
from skipgpt.model.state import execution

WAYS = {
    "beams": {"num_beams": 3},
    "chunked prefill": {"prefill_chunk_size": 4},
    "left-padded batch": {},
}


@pytest.mark.parametrize("way", WAYS)
@every_policy
@every_family
@torch.no_grad()
def test_sparse_with_a_cache_chooses_the_tokens_of_gated_without_one(
    family: str, kv: str, way: str
) -> None:
    model = sparse_model(family, kv)
    padded = way == "left-padded batch"
    given = LEFT_PADDED.prompt if padded else {"input_ids": prompt(2, tokens=9)}
    how = GREEDY | {"max_new_tokens": 4, "min_new_tokens": 4} | WAYS[way]
    actual = model.generate(**given, **how)
    how.pop("prefill_chunk_size", None)
    with execution(model, "gated"):
        expected = model.generate(**given, **how, use_cache=False)
    assert torch.equal(actual, expected)
