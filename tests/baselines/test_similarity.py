"""What ShortGPT and LLM-Drop go by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from bases import EMPTY, deep, layer, own_words
from cases import ONE_ROW, every_layout, routed
from skipgpt.baselines.registry import STATIC
from skipgpt.baselines.similarity import influences
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.removal.units import units_of
from skipgpt.routing.decision import Forced, Site


def _stream(model: nn.Module, index: int, *skipped: Site) -> Tensor:
    """The stream [B, T, D] that enters a layer, with some modules skipped before it."""
    with use_rule(model, Forced.without(list(skipped))), execution(model, "sparse"):
        out = model(ONE_ROW.ids, output_hidden_states=True, use_cache=False)
    return out.hidden_states[index]


@every_layout
@torch.no_grad()
def test_it_goes_by_the_cosine_of_the_streams_before_and_behind(family: str) -> None:
    model = routed(family)
    found = influences(model, ONE_ROW.ids)
    assert sorted(found) == sorted(units_of(model, "layers") + units_of(model, "modules"))
    for n in range(2):  # hidden states of the last layer are past the final norm
        attn, mlp = layer(n)
        parallel = routed_layers(model)[n].family.is_parallel(routed_layers(model)[n])
        before, between, behind = (
            _stream(model, n),
            _stream(model, n + 1, mlp),
            _stream(model, n + 1),
        )
        pairs = {
            (attn, mlp): (before, behind),
            (attn,): (before, between),
            (mlp,): (before, _stream(model, n + 1, attn)) if parallel else (between, behind),
        }
        for unit, (first, second) in pairs.items():
            # A mean of cosines, which are sums of 32 float32 products of numbers up to 30.
            wanted = cosine_similarity(first, second, dim=-1).mean().item()
            assert found[unit] == pytest.approx(1 - wanted, abs=1e-5), unit


def test_a_layer_that_does_nothing_turns_nothing() -> None:
    model = deep()
    found = influences(model, own_words(model), batch_size=3)
    empty = {unit for unit, turn in found.items() if turn == pytest.approx(0, abs=1e-6)}
    attn, mlp = layer(EMPTY)
    assert empty == {(attn, mlp), (attn,), (mlp,)}


def test_shortgpt_and_llm_drop_rank_by_it() -> None:
    model = deep()
    text = own_words(model)
    found = influences(model, text)
    layers, modules = units_of(model, "layers"), units_of(model, "modules")
    shortgpt, llm_drop = STATIC["shortgpt"].order, STATIC["llm-drop"].order
    assert shortgpt(model, text, 6) == sorted(layers, key=lambda unit: found[unit])
    assert llm_drop(model, text, 12) == sorted(modules, key=lambda unit: found[unit])


@pytest.mark.parametrize("kind", ["attn", "mlp"])
def test_llm_drop_can_be_kept_to_one_kind_of_module(kind: str) -> None:
    model = deep()
    text = own_words(model)
    joint, one = (STATIC[name].order for name in ("llm-drop", f"llm-drop-{kind}"))
    assert one(model, text, 6) == [u for u in joint(model, text, 12) if u[0].module == kind]
    with pytest.raises(ConfigError, match="got 7 removals; expected 0 to 6"):
        one(model, text, 7)
