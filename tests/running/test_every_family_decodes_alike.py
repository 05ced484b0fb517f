import torch

import zoo
from cases import LAYOUTS, LEFT_PADDED, families_with
from running.ways import GREEDY, KV, sparse_model
from skipgpt.model.state import execution

# Families of each layout, in the long suite all, in beams and in chunks; every other family in one
# of the two. Elsewhere in this folder every policy is tried with caches on a family of each layout,
# and with every way on some.
WAYS = {"dense": {"num_beams": 3}, "skip": {"prefill_chunk_size": 4}}


@families_with("kv", KV, names=zoo.ZOO, whole=LAYOUTS)
@torch.no_grad()
def test_sparse_with_a_cache_chooses_the_tokens_of_gated_without_one(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    how = GREEDY | {"max_new_tokens": 4, "min_new_tokens": 4} | WAYS[kv]
    actual = model.generate(**LEFT_PADDED.prompt, **how)
    how.pop("prefill_chunk_size", None)
    with execution(model, "gated"):
        expected = model.generate(**LEFT_PADDED.prompt, **how, use_cache=False)
    assert torch.equal(actual, expected)
