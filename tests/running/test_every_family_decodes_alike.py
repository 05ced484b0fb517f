import torch

from cases import LEFT_PADDED, every_family
from running.ways import GREEDY, every_policy, sparse_model
from skipgpt.model.state import execution

# Each family once in beams and once in chunks; elsewhere in this folder every policy is tried with
# caches on a family of each layout, and with every way on some.
WAYS = {"dense": {"num_beams": 3}, "skip": {"prefill_chunk_size": 4}}


@every_policy
@every_family
@torch.no_grad()
def test_sparse_with_a_cache_chooses_the_tokens_of_gated_without_one(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    how = GREEDY | {"max_new_tokens": 4, "min_new_tokens": 4} | WAYS[kv]
    actual = model.generate(**LEFT_PADDED.prompt, **how)
    how.pop("prefill_chunk_size", None)
    with execution(model, "gated"):
        expected = model.generate(**LEFT_PADDED.prompt, **how, use_cache=False)
    assert torch.equal(actual, expected)
