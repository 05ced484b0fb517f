"""Every way of decoding gives the logits of the definition."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from cases import CLOSE, LEFT_PADDED, base
from decodings import lengths
from running.ways import (
    GREEDY,
    NEW,
    SAMPLING,
    check_logits,
    chosen_by_hand,
    defined,
    every_policy,
    every_way,
    generated,
    needs_transformers,
    other_layouts,
    prompt,
    sparse_model,
)
from skipgpt.model.state import execution, record_routing

MOST_WAYS = {
    "greedy": GREEDY,
    "sampling": SAMPLING,
    "beam search": GREEDY | {"num_beams": 3},
    "sampling in beams": SAMPLING | {"num_beams": 3, "num_return_sequences": 2},
    "three samples of a prompt": SAMPLING | {"num_return_sequences": 3},
    "classifier-free guidance": GREEDY | {"guidance_scale": 1.5},
}


# With which policy each is tried on other layouts; on a Llama it is with both.
PAIRED = [
    ("dense", "greedy"),
    ("skip", "sampling"),
    ("skip", "beam search"),
    ("dense", "sampling in beams"),
    ("dense", "three samples of a prompt"),
    ("skip", "classifier-free guidance"),
]


@every_way
@every_policy
@torch.no_grad()
def test_the_definition_is_not_the_base_model(family: str, kv: str) -> None:
    """Else all that follows could pass without a single token skipped."""
    model = sparse_model(family, kv)
    with record_routing(model) as trace:
        expected = defined(model, prompt())
    assert 0.2 < trace.sparsity("attn") < 0.8
    assert 0.2 < trace.sparsity("mlp") < 0.8
    assert (base(family)(prompt()).logits - expected).abs().max() > 0.1


@every_way
@every_policy
@torch.no_grad()
def test_greedy_tokens_are_those_of_full_forwards_one_by_one(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    output = generated(model, prompt(2))
    assert torch.equal(output.sequences, chosen_by_hand(model, prompt(2)))
    check_logits(model, output)


@other_layouts
@torch.no_grad()
def test_layouts_of_which_no_way_is_tried_decode_by_the_definition(family: str) -> None:
    test_the_definition_is_not_the_base_model(family, "dense")
    test_greedy_tokens_are_those_of_full_forwards_one_by_one(family, "dense")
    test_left_padded_rows_continue_as_each_alone(family, "dense", beams=1)


@pytest.mark.parametrize("way", MOST_WAYS)
@every_policy
@torch.no_grad()
def test_each_way_chooses_what_it_chooses_by_the_definition(kv: str, way: str) -> None:
    _compare("llama", kv, MOST_WAYS[way])


@pytest.mark.parametrize(("kv", "way"), PAIRED)
@every_way
@torch.no_grad()
def test_other_layouts_choose_what_they_choose_by_the_definition(
    family: str, kv: str, way: str
) -> None:
    _compare(family, kv, MOST_WAYS[way])


def _compare(family: str, kv: str, how: dict[str, Any]) -> None:
    model = sparse_model(family, kv)
    cached = generated(model, prompt(2), **how).sequences
    uncached = generated(model, prompt(2), **how, use_cache=False).sequences
    with execution(model, "gated"):
        expected = generated(model, prompt(2), **how, use_cache=False).sequences
    assert torch.equal(cached, expected)
    assert torch.equal(uncached, expected)
    with execution(model, "dense"):
        assert not torch.equal(generated(model, prompt(2), **how).sequences, expected)


@every_way
@every_policy
@torch.no_grad()
def test_samples_of_one_prompt_have_the_logits_of_their_own_text(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    output = generated(model, prompt(2), **SAMPLING, num_return_sequences=3)
    assert len(output.sequences.unique(dim=0)) == 6
    check_logits(model, output)


@every_way
@every_policy
@torch.no_grad()
def test_beams_have_the_scores_of_the_definition(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    how = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    output = generated(model, prompt(2), output_scores=True, **how)
    chosen = output.sequences[:, 11:, None]
    # Beam search normalizes first and keeps the end of a text from being chosen afterwards.
    each = defined(model, output.sequences)[:, 10:-1].log_softmax(-1).gather(2, chosen)
    torch.testing.assert_close(output.sequences_scores, each.sum((1, 2)), rtol=0, atol=1e-4)
    beams = output.beam_indices[:, :NEW]
    assert (beams != beams[:, :1]).any(), "no beam was reordered"


# The other families' models run all their layers, whatever number the config says.
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "mixtral"])
@every_policy
@torch.no_grad()
def test_its_own_first_layer_as_assistant_changes_no_token(family: str, kv: str) -> None:
    if family == "gemma3_text":
        needs_transformers("5.22", "cropping a window that no layer has filled")
    model = sparse_model(family, kv)
    output = generated(model, prompt(), assistant_early_exit=1)
    assert torch.equal(output.sequences, chosen_by_hand(model, prompt()))


@pytest.mark.parametrize("size", [1, 4, 20])
@every_way
@every_policy
@torch.no_grad()
def test_a_prompt_may_be_read_in_chunks(family: str, kv: str, size: int) -> None:
    model = sparse_model(family, kv)
    with record_routing(model) as trace:
        output = generated(model, prompt(2), prefill_chunk_size=size)
    assert torch.equal(output.sequences, chosen_by_hand(model, prompt(2)))
    check_logits(model, output)
    assert max(lengths(trace)) == min(size, 11)


@pytest.mark.parametrize("beams", [1, 3])
@every_way
@every_policy
@torch.no_grad()
def test_left_padded_rows_continue_as_each_alone(family: str, kv: str, beams: int) -> None:
    model, how = sparse_model(family, kv), GREEDY | {"num_beams": beams}
    together = model.generate(**LEFT_PADDED.prompt, **how)
    with execution(model, "gated"):
        for row, pads, ids in zip(together, LEFT_PADDED.pads, LEFT_PADDED.rows(), strict=True):
            assert torch.equal(row[pads:], model.generate(ids[None], **how, use_cache=False)[0])


@every_way
@every_policy
@torch.no_grad()
def test_embeddings_are_continued_like_the_tokens_they_are_of(family: str, kv: str) -> None:
    model, ids = sparse_model(family, kv), LEFT_PADDED.ids
    mask = LEFT_PADDED.real.long()
    embedded = model.get_input_embeddings()(ids)
    new = model.generate(inputs_embeds=embedded, attention_mask=mask, **GREEDY)
    for row, alone in zip(new, LEFT_PADDED.rows(), strict=True):
        assert torch.equal(row, chosen_by_hand(model, alone[None])[0, len(alone) :])


@every_way
@every_policy
@torch.no_grad()
def test_hidden_states_along_the_way_are_those_of_one_forward(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    output = generated(model, prompt(2), output_hidden_states=True)
    with execution(model, "gated"):
        full = model(output.sequences[:, :-1], output_hidden_states=True, use_cache=False)
    steps = [torch.cat(layer, dim=1) for layer in zip(*output.hidden_states, strict=True)]
    assert len(steps) == 4
    for mine, other in zip(steps, full.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


@every_policy
@torch.no_grad()
def test_a_stream_carries_the_tokens_in_order(kv: str) -> None:
    class Collecting(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.tokens.extend(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    model, streamer = sparse_model("llama", kv), Collecting()
    generated(model, prompt(), streamer=streamer)
    assert streamer.tokens == chosen_by_hand(model, prompt())[0].tolist()
    assert streamer.ended
