import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from cases import CLOSE, LEFT_PADDED, Inputs, conformance, every_layout, layouts, routed
from skipgpt.model.state import execution

# Alibi is as long as the text in transformers, a static cache is longer.
WITHOUT_STATIC = {"bloom", "falcon/alibi", "falcon/alibi-parallel"}
TWO_ROWS = Inputs((0, 0), padded=False)


@conformance
@torch.no_grad()
def test_prefill_then_decode_equals_the_full_forward(family: str) -> None:
    model = routed(family)
    for inputs in (TWO_ROWS, LEFT_PADDED):
        for kind in ("gated", "sparse"):
            with execution(model, kind):
                full = model(**inputs.given).logits
                stepwise = _in_chunks(model, inputs, [8, 1, 1, 1], _dynamic(model))
            torch.testing.assert_close(stepwise[inputs.real], full[inputs.real], **CLOSE)


@every_layout
@torch.no_grad()
def test_prefill_then_decode_equals_the_full_forward_with_stand_ins(family: str) -> None:
    model = routed(family, stand_in=3)
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            full = model(**LEFT_PADDED.given).logits
            stepwise = _in_chunks(model, LEFT_PADDED, [8, 1, 1, 1], _dynamic(model))
        torch.testing.assert_close(stepwise[LEFT_PADDED.real], full[LEFT_PADDED.real], **CLOSE)


@torch.no_grad()
def test_prefill_then_decode_equals_the_full_forward_where_layers_decide_whole() -> None:
    model, inputs = routed(decides="layer", stand_in=3), LEFT_PADDED
    full = model(**inputs.given).logits
    stepwise = _in_chunks(model, inputs, [8, 1, 1, 1], _dynamic(model))
    torch.testing.assert_close(stepwise[inputs.real], full[inputs.real], **CLOSE)


# A first chunk longer than the window of 5, and chunks that straddle its edge.
@pytest.mark.parametrize("chunks", [[7, 4], [3, 4, 3, 1]])
@every_layout
@torch.no_grad()
def test_chunked_prefill_equals_the_full_forward(family: str, chunks: list[int]) -> None:
    model, inputs = routed(family), LEFT_PADDED
    full = model(**inputs.given).logits
    stepwise = _in_chunks(model, inputs, chunks, _dynamic(model))
    torch.testing.assert_close(stepwise[inputs.real], full[inputs.real], **CLOSE)


@layouts(but=WITHOUT_STATIC)
@torch.no_grad()
def test_a_static_cache_works_as_on_the_base_model(family: str) -> None:
    model = routed(family)
    for inputs in (TWO_ROWS, LEFT_PADDED):
        full = model(**inputs.given).logits
        cache = StaticCache(config=model.config, max_cache_len=16)
        stepwise = _in_chunks(model, inputs, [8, 1, 1, 1], cache)
        torch.testing.assert_close(stepwise[inputs.real], full[inputs.real], **CLOSE)


@every_layout
@torch.no_grad()
def test_every_token_leaves_keys_and_values_in_the_cache(family: str) -> None:
    model, inputs = routed(family), TWO_ROWS
    sparse, gated = _dynamic(model), _dynamic(model)
    model(**inputs.given, past_key_values=sparse)
    with execution(model, "gated"):
        model(**inputs.given, past_key_values=gated)
    for mine, other in zip(sparse.layers, gated.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, **CLOSE)
        torch.testing.assert_close(mine.values, other.values, **CLOSE)


def _dynamic(model: nn.Module) -> DynamicCache:
    return DynamicCache(config=model.config)


def _in_chunks(model: nn.Module, inputs: Inputs, chunks: list[int], cache: object) -> Tensor:
    logits, start = [], 0
    for length in chunks:
        step = model(**inputs.chunk(start, start + length), past_key_values=cache)
        logits.append(step.logits)
        start += length
    assert start == inputs.tokens
    return torch.cat(logits, dim=1)
