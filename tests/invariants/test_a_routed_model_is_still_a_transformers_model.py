import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from cases import CLOSE, LEFT_PADDED, Inputs, base, every_family, routed
from skipgpt.model.surgery import add_routers, routers
from skipgpt.model.trace import deciding, execution, routing_state
from skipgpt.routing.decision import KEEP_ALL

GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@every_family
@torch.no_grad()
def test_a_copy_answers_alike_and_lives_its_own_life(family: str) -> None:
    model = routed(family)
    twin = copy.deepcopy(model)
    expected = model(**LEFT_PADDED.given).logits
    assert torch.equal(twin(**LEFT_PADDED.given).logits, expected)

    routing_state(twin).rule = KEEP_ALL
    for router in routers(twin).values():
        nn.init.normal_(next(router.parameters()))
    assert torch.equal(model(**LEFT_PADDED.given).logits, expected)
    assert (twin(**LEFT_PADDED.given).logits - expected)[LEFT_PADDED.real].abs().max() > 0.1


@every_family
@torch.no_grad()
def test_a_saved_model_loads_as_the_base_model_with_the_routers_beside_it(
    family: str, tmp_path: Path
) -> None:
    model = routed(family)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert len([key for key in keys if "_router." in key]) == 12

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    inputs = Inputs((0,), padded=False)
    assert torch.equal(loaded(**inputs.given).logits, base(family)(**inputs.given).logits)


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@every_family
@torch.no_grad()
def test_hidden_states_are_the_residual_stream_around_each_layer(family: str, kind: str) -> None:
    model, inputs = routed(family), Inputs((0, 0), padded=False)
    with execution(model, kind):
        output = model(**inputs.given, output_hidden_states=True)
        plain = model(**inputs.given).logits
    assert len(output.hidden_states) == 4
    embedded = model.get_input_embeddings()(inputs.ids)
    torch.testing.assert_close(output.hidden_states[0], embedded, rtol=0, atol=0)
    assert torch.equal(output.logits, plain)
    for before, after in zip(output.hidden_states, output.hidden_states[1:], strict=False):
        assert (before - after).abs().max() > 0.1


@every_family
@torch.no_grad()
def test_greedy_generation_equals_full_forwards_without_a_cache(family: str) -> None:
    model, inputs = routed(family), Inputs((0, 0), padded=False)
    ids = inputs.ids
    for _ in range(5):
        next_logits = model(ids).logits[:, -1:]
        next_logits[..., 0] = -torch.inf  # token 0 ends a text; five tokens are the least
        ids = torch.cat([ids, next_logits.argmax(-1)], dim=1)
    assert torch.equal(model.generate(inputs.ids, **GREEDY), ids)


@every_family
@torch.no_grad()
def test_batched_left_padded_generation_equals_each_row_alone(family: str) -> None:
    model = routed(family)
    together = model.generate(**LEFT_PADDED.given, **GREEDY)
    for row, pads, ids in zip(together, LEFT_PADDED.pads, LEFT_PADDED.rows(), strict=True):
        assert torch.equal(row[pads:], model.generate(ids[None], **GREEDY)[0])


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(GREEDY, id="greedy"),
        pytest.param(GREEDY | {"cache_implementation": "static"}, id="static-cache"),
        pytest.param(GREEDY | {"num_beams": 3}, id="beam-search"),
        pytest.param(GREEDY | {"do_sample": True, "temperature": 1.5}, id="sampling"),
    ],
)
@every_family
@torch.no_grad()
def test_generation_is_the_same_in_sparse_and_in_gated_execution(
    family: str, how: dict[str, object]
) -> None:
    model = routed(family)
    sparse = _generate(model, how)
    with execution(model, "gated"):
        gated = _generate(model, how)
    with execution(model, "dense"):
        dense = _generate(model, how)
    assert sparse.shape == (3, 16)
    assert torch.equal(sparse, gated)
    assert not torch.equal(sparse, dense)


@torch.no_grad()
def test_sampling_follows_the_seed() -> None:
    model = routed()
    how = GREEDY | {"do_sample": True, "temperature": 1.5}
    first, again, other = (_generate(model, how, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_family
@torch.no_grad()
def test_embeddings_serve_as_input(family: str) -> None:
    model = routed(family)
    embedded = model.get_input_embeddings()(LEFT_PADDED.ids)
    logits = model(inputs_embeds=embedded, attention_mask=LEFT_PADDED.real.long()).logits
    expected = model(**LEFT_PADDED.given).logits
    assert torch.equal(logits, expected)


@every_family
@torch.no_grad()
def test_a_bfloat16_base_keeps_float32_routers_and_runs_in_both_executions(family: str) -> None:
    model = add_routers(base(family).to(torch.bfloat16)).eval()
    assert {p.dtype for r in routers(model).values() for p in r.parameters()} == {torch.float32}
    inputs = Inputs((0,), padded=False)
    with deciding(model, KEEP_ALL):
        sparse = model(**inputs.given).logits
        with execution(model, "gated"):
            gated = model(**inputs.given).logits
    assert sparse.dtype == torch.bfloat16
    # All kept: the very same operations on the same shapes.
    torch.testing.assert_close(sparse, gated, **CLOSE)
    assert model(**inputs.given).logits.dtype == torch.bfloat16


def _generate(model: nn.Module, how: dict[str, object], seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return model.generate(**LEFT_PADDED.given, **how)
