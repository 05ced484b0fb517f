"""Layers that collapse into others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bases import deep, layer, own_words, silence
from cases import families
from runs import rows
from skipgpt.baselines.laco import Merges, laco
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import add_routers, routed_layers
from skipgpt.removal.units import sites_of
from skipgpt.routing.decision import Forced, Site
from tiny import tiny_base

WAYS = ("llama", "cohere", "olmo2", "glm4", "bloom", "mixtral")


def _weights(model: nn.Module, index: int) -> dict[str, Tensor]:
    found = routed_layers(model)[index].named_parameters()
    return {name: p.detach().clone() for name, p in found if "router" not in name}


def _four(family: str) -> nn.Module:
    """Four layers: the last one is not merged as long as others can be."""
    depth = {"n_layer": 4} if family == "bloom" else {}
    return tiny_base(family, initializer_range=0.2, layer_types=..., num_hidden_layers=4, **depth)


@torch.no_grad()
def _logits(model: nn.Module, text: Tensor, removed: list[Site] | None = None) -> Tensor:
    kind = "dense" if removed is None else "sparse"
    with use_rule(model, Forced.without(removed or [])), execution(model, kind):
        return model(text, use_cache=False).logits


def test_a_layer_takes_over_what_others_differ_in() -> None:
    model = deep()
    before = [_weights(model, n) for n in range(6)]
    Merges(model).merge(1, [3, 4])
    after = _weights(model, 1)
    for name, own in before[1].items():
        wanted = before[3][name] + before[4][name] - own
        if "layernorm" in name:
            wanted = own
        # Sums of three float32 numbers below 1.
        torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-6)
    for n in (0, 2, 3, 4, 5):
        assert all(torch.equal(before[n][name], p) for name, p in _weights(model, n).items())


def test_merges_can_be_taken_back_exactly() -> None:
    model = deep()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    merges = Merges(model)
    merges.merge(2, [3, 4])
    merges.merge(1, [2])
    merges.merge(1, [5])
    merges.undo_all()
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_layers_of_equal_weights_leave_the_kept_one_as_it_is() -> None:
    model = deep()
    for index in range(3, 6):
        routed_layers(model)[index].load_state_dict(routed_layers(model)[1].state_dict())
    kept = _weights(model, 1)
    Merges(model).merge(1, [3, 4, 5])
    assert all(torch.equal(kept[name], weight) for name, weight in _weights(model, 1).items())


@families(WAYS)
def test_a_layer_that_does_nothing_collapses_without_a_trace(family: str) -> None:
    # Norms are alike, so a layer that takes over the next one's weights is the next one.
    model = silence(add_routers(_four(family)), 1)
    text = rows(3)
    dense = _logits(model, text)
    removed = laco(model, text, 1)
    assert removed == [layer(2)]
    merged = _logits(model, text, sites_of(removed))
    torch.testing.assert_close(merged, dense, rtol=0, atol=1e-4)


def test_the_budget_is_hit_and_no_layer_goes_twice() -> None:
    for removals in range(5):
        model = deep()
        removed = laco(model, own_words(model), removals)
        assert len(set(removed)) == len(removed) == removals
        assert not {layer(0), layer(5)} & set(removed)


def test_only_layers_that_stay_take_weights_over() -> None:
    model = deep()
    before = [_weights(model, n) for n in range(6)]
    removed = laco(model, own_words(model), 3)
    changed = {
        n
        for n in range(6)
        if any(not torch.equal(before[n][name], p) for name, p in _weights(model, n).items())
    }
    assert changed
    assert not changed & {unit[0].layer for unit in removed}


def test_merges_are_made_from_the_top_downwards() -> None:
    # Every layer is the same, and hardly anything: all merges are good enough at once.
    base = tiny_base(num_hidden_layers=24, initializer_range=1e-3, intermediate_size=8)
    removed = laco(add_routers(base), rows(2), 5)
    assert removed == [layer(n) for n in (22, 21, 23, 20, 19)]


def test_an_eighth_of_the_layers_become_one_at_a_time() -> None:
    for layers, first in ((4, 1), (8, 5), (24, 20)):  # the last layer is not in the first merge
        base = tiny_base(num_hidden_layers=layers, initializer_range=1e-3, intermediate_size=8)
        model = add_routers(base)
        before = [_weights(model, n) for n in range(layers)]
        laco(model, rows(1), max(2, layers // 8) - 1)
        after = [_weights(model, n) for n in range(layers)]
        changed = [
            n
            for n in range(layers)
            if any(not torch.equal(after[n][name], before[n][name]) for name in before[n])
        ]
        assert changed == [first]


def test_layers_of_another_make_are_left_alone() -> None:
    model = add_routers(_four("deepseek_v3"))  # the first layer has no experts
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="got 3 removals; expected at most 1"):
        laco(model, rows(2), 3)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert laco(model, rows(2), 1) == [layer(2)]


def test_an_interruption_leaves_the_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    text = own_words(model)
    before = copy.deepcopy(model.state_dict())

    def stop(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("skipgpt.baselines.laco._Judge.accepts", stop)
    with pytest.raises(KeyboardInterrupt):
        laco(model, text, 2)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_copy_keeps_the_model_for_others() -> None:
    model = deep()
    text = own_words(model)
    dense = _logits(model, text)
    merged = copy.deepcopy(model)
    laco(merged, text, 2)
    assert torch.equal(_logits(model, text), dense)
    assert not torch.equal(_logits(merged, text), dense)
