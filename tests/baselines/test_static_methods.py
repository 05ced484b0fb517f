"""What all static methods have in common."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from bases import DEEP, EMPTY, deep, own_words, shallow
from cases import families_with
from removals import static_loss
from skipgpt.baselines.registry import STATIC
from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.model.state import execution, routing_state
from skipgpt.model.surgery import routers
from skipgpt.removal.units import Unit, sites_of, units_of
from skipgpt.routing.decision import Threshold
from skipgpt.routing.router import set_constant

CHOOSING = [name for name, method in STATIC.items() if not method.changes_weights]
every_method = pytest.mark.parametrize("name", STATIC)
every_choosing_method = pytest.mark.parametrize("name", CHOOSING)


@functools.cache
def _text() -> Tensor:
    return own_words(deep())


def _candidates(name: str, model: nn.Module) -> list[Unit]:
    """What a method may remove: LLM-Drop has variants that know one kind of module only."""
    units, kind = units_of(model, STATIC[name].units), name.removeprefix("llm-drop-")
    return [unit for unit in units if kind not in ("attn", "mlp") or unit[0].module == kind]


def _of_layer(name: str, model: nn.Module, index: int) -> list[Unit]:
    return [unit for unit in _candidates(name, model) if unit[0].layer == index]


@functools.cache
def _full_order(name: str) -> list[Unit]:
    model = deep()
    return STATIC[name].order(model, _text(), len(_candidates(name, model)))


def test_the_names_of_the_command_line() -> None:
    names = "shortgpt sleb shortened-ppl shortened-taylor llm-drop llm-drop-attn llm-drop-mlp"
    own = [*names.split(), "blockpruner", "fisher", "fisher-flops", "laco"]
    assert set(own) <= set(STATIC)
    of_modules = {name for name in own if STATIC[name].units == "modules"}
    fisher = {"fisher", "fisher-flops"}
    assert of_modules == {"llm-drop", "llm-drop-attn", "llm-drop-mlp", "blockpruner"} | fisher
    published = [name for name in own if "llm-drop-" not in name and name not in fisher]
    assert all("arXiv 24" in STATIC[name].source for name in published)


@every_choosing_method
def test_all_units_go_in_the_end_each_once(name: str) -> None:
    assert sorted(_full_order(name)) == _candidates(name, deep())


@every_choosing_method
@pytest.mark.parametrize("removals", [0, 1, 3])
def test_a_prefix_is_the_answer_for_a_smaller_budget(name: str, removals: int) -> None:
    assert STATIC[name].order(deep(), _text(), removals) == _full_order(name)[:removals]


@every_choosing_method
def test_a_layer_that_does_nothing_goes_first(name: str) -> None:
    empty = _of_layer(name, deep(), EMPTY)
    assert sorted(_full_order(name)[: len(empty)]) == empty


# By streams, by losses and by gradients of either kind; the others are made of the same.
@families_with("name", ["shortgpt", "blockpruner", "shortened-taylor", "fisher"])
def test_a_layer_that_does_nothing_goes_first_in_families(family: str, name: str) -> None:
    model = shallow(family)
    empty = _of_layer(name, model, 1)
    assert sorted(STATIC[name].order(model, own_words(model), len(empty))) == empty


@every_method
def test_a_layer_that_does_nothing_is_gone_without_loss(name: str) -> None:
    model, text = deep(), _text()
    dense = static_loss(model, text, [])
    removals = len(_of_layer(name, model, EMPTY))
    removed = STATIC[name].order(model, text, removals)
    assert len(removed) == removals
    # An empty module adds exact zeros; roundings of float32 losses are near 1e-7.
    assert static_loss(model, text, sites_of(removed)) == pytest.approx(dense, abs=1e-6)


@every_method
def test_what_the_routers_say_does_not_matter(name: str) -> None:
    first, second = deep(), deep()
    for n, router in enumerate(routers(second).values()):
        set_constant(router, 5.0 - n)
    routing_state(second).rule = Threshold(1.0)
    order = STATIC[name].order
    assert order(first, _text(), 3) == order(second, _text(), 3)


@every_choosing_method
def test_the_batch_size_does_not_matter(name: str) -> None:
    assert STATIC[name].order(deep(), _text(), 4, batch_size=3) == _full_order(name)[:4]


@every_method
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = deep().train()
    head = model.lm_head.weight.requires_grad_(False)
    norm = model.model.norm.weight
    norm.grad = torch.ones_like(norm)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    hooks = [_hooks(module) for module in model.modules()]
    STATIC[name].order(model, _text(), 2)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(".self_attn." in key or ".mlp." in key for key in changed)
    assert bool(changed) == STATIC[name].changes_weights
    assert model.training
    assert not head.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not head)
    assert [p for p in model.parameters() if p.grad is not None] == [norm]
    assert torch.equal(norm.grad, torch.ones_like(norm))
    assert [_hooks(module) for module in model.modules()] == hooks
    assert routing_state(model).rule == Threshold()
    assert routing_state(model).execution == "auto"


def _hooks(module: nn.Module) -> tuple[int, int]:
    return len(module._forward_hooks), len(module._forward_pre_hooks)


@every_method
def test_progress_ends_at_its_total(name: str) -> None:
    steps: list[tuple[int, int]] = []
    STATIC[name].order(deep(), _text(), 2, batch_size=1, on_step=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert {total for _, total in steps} == {steps[-1][0]}


@every_method
def test_more_removals_than_there_are_units_are_refused(name: str) -> None:
    model = deep()
    count = len(_candidates(name, model))
    of_modules = ("llm-drop", "blockpruner", "fisher", "fisher-flops")
    assert count == (2 * DEEP if name in of_modules else DEEP)
    with pytest.raises(ConfigError, match=f"got {count + 1} removals; expected 0 to {count}"):
        STATIC[name].order(model, _text(), count + 1)


@pytest.mark.parametrize("name", ["shortened-taylor", "laco"])
def test_quantised_weights_are_refused_where_they_are_computed_with(name: str) -> None:
    model = deep()
    model.is_quantized = True
    with pytest.raises(UnsupportedModelError, match="whose weights are not quantised"):
        STATIC[name].order(model, _text(), 1)
    model = deep()
    projection = model.model.layers[0].mlp.up_proj
    packed = nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    projection.weight = packed
    with pytest.raises(UnsupportedModelError, match="a quantised base model"):
        STATIC[name].order(model, _text(), 1)


def test_dense_execution_is_untouched_by_forced_removals() -> None:
    model = deep()
    with execution(model, "dense"), torch.no_grad():
        wanted = model(_text()).logits
        STATIC["sleb"].order(model, _text(), 1)
        assert torch.equal(model(_text()).logits, wanted)
