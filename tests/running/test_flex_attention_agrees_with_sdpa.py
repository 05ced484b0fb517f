from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from cases import CLOSE, LEFT_PADDED, families_with
from running.ways import empty_cache, every_policy, in_chunks, prompt, sparse_model
from skipgpt.model.state import execution

# GPT-2 has no flex attention in transformers.
LAYOUTS = ("llama", "mistral", "gemma3_text", "gpt_neox", "cohere2", "mixtral")
pytestmark = [
    # Both say that plain torch is slow, where `_uncompiled` asks for it.
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch:UserWarning"),
    # What torch's compiler imports is deprecated there.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning"),
]


# What is not sparse gives attention every token: tried with windows and without.
@families_with(
    "kind",
    ["sparse", "gated", "dense"],
    few=["sparse"],
    names=LAYOUTS,
    whole=("llama", "gemma3_text"),
)
@every_policy
@torch.no_grad()
def test_flex_attention_agrees_with_sdpa(family: str, kv: str, kind: str) -> None:
    flex, sdpa = (sparse_model(family, kv, name) for name in ("flex_attention", "sdpa"))
    with _uncompiled(), execution(flex, kind), execution(sdpa, kind):
        given, real = LEFT_PADDED.given, LEFT_PADDED.real
        expected = sdpa(**given).logits[real]
        torch.testing.assert_close(flex(**given).logits[real], expected, **CLOSE)
        chunks = in_chunks(flex, prompt(2), [8, 3], empty_cache(flex))
        torch.testing.assert_close(chunks, sdpa(prompt(2)).logits, **CLOSE)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiling flex attention for a CPU takes half a minute for each shape."""
    with torch.compiler.set_stance("force_eager"):
        yield
