import pytest
import torch

from cases import CLOSE
from running.ways import (
    defined,
    empty_cache,
    every_policy,
    every_way,
    generated,
    in_chunks,
    prompt,
    sparse_model,
)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_way
@every_policy
@torch.no_grad()
def test_eager_and_sdpa_agree_in_chunks_and_in_generation(
    family: str, kv: str, attention: str
) -> None:
    reference = sparse_model(family, kv, "eager")
    model, ids = sparse_model(family, kv, attention), prompt(2)
    expected = defined(reference, ids)
    torch.testing.assert_close(model(ids).logits, expected, **CLOSE)
    chunks = in_chunks(model, ids, [7, 3, 1], empty_cache(model))
    torch.testing.assert_close(chunks, expected, **CLOSE)
    assert torch.equal(generated(model, ids).sequences, generated(reference, ids).sequences)
