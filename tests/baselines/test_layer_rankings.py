"""SLEB and the two of Shortened LLaMA against plain references."""

from __future__ import annotations

import copy

import pytest
import torch

from bases import deep, layer, own_words
from removals import static_loss
from runs import rows
from skipgpt.baselines.greedy import sleb
from skipgpt.baselines.registry import STATIC
from skipgpt.model.surgery import add_routers, remove_routers
from skipgpt.removal.units import sites_of
from tiny import tiny_base

shortened_ppl, shortened_taylor = (STATIC[f"shortened-{by}"].order for by in ("ppl", "taylor"))


def test_sleb_takes_the_cheapest_inner_layer_given_those_gone() -> None:
    model = deep()
    text = own_words(model)
    order = sleb(model, text, 4)
    for n, unit in enumerate(order):
        others = [layer(i) for i in range(1, 5) if layer(i) not in order[:n]]
        losses = {o: static_loss(model, text, sites_of([*order[:n], o])) for o in others}
        assert losses[unit] == min(losses.values())


def test_sleb_keeps_the_ends_until_nothing_else_is_left() -> None:
    model = deep()
    order = sleb(model, own_words(model), 6)
    assert set(order[4:]) == {layer(0), layer(5)}


def test_ppl_ranks_by_the_loss_without_each_layer_alone() -> None:
    model = deep()
    text = own_words(model)
    losses = {layer(n): static_loss(model, text, list(layer(n))) for n in range(6)}
    assert shortened_ppl(model, text, 6) == sorted(losses, key=lambda unit: losses[unit])


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_taylor_ranks_by_weight_times_gradient(changes: dict[str, object]) -> None:
    base = tiny_base(num_hidden_layers=6, initializer_range=0.2, **changes)
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=10.0)  # would turn the order if it counted
    plain = copy.deepcopy(base)
    plain(rows(5), labels=rows(5)).loss.backward()
    scores = {
        layer(n): sum(
            (p * p.grad).abs().sum().item()
            for name, p in plain.model.layers[n].named_parameters()
            if not name.endswith("bias")
        )
        for n in range(1, 5)
    }
    found = shortened_taylor(add_routers(base), rows(5), 4, batch_size=2)
    assert found == sorted(scores, key=lambda unit: scores[unit])


def test_taylor_keeps_the_first_4_and_the_last_2_of_32_layers() -> None:
    base = tiny_base(num_hidden_layers=32, intermediate_size=8)
    order = shortened_taylor(add_routers(base), rows(2), 32)
    assert set(order[26:]) == {layer(n) for n in (0, 1, 2, 3, 30, 31)}


def test_taylor_works_under_no_grad_and_in_training_mode() -> None:
    model = deep()
    text = own_words(model)
    wanted = shortened_taylor(model, text, 3)
    with torch.no_grad():
        assert shortened_taylor(model.train(), text, 3) == wanted
    assert remove_routers(model).training
