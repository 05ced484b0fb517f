import copy

import torch
from torch import nn

from cases import LEFT_PADDED, Inputs, base, conformance, every_layout, routed
from skipgpt.model.state import record_routing
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers, router_state_dict


@conformance
@torch.no_grad()
def test_removing_routers_restores_class_state_hooks_and_logits(family: str) -> None:
    model, inputs = base(family), LEFT_PADDED
    expected = model(**inputs.given).logits
    before = _anatomy(model)

    assert add_routers(model) is model
    assert _anatomy(model) != before
    assert remove_routers(model) is model

    assert _anatomy(model) == before
    assert torch.equal(model(**inputs.given).logits, expected)


@every_layout
def test_adding_routers_changes_no_base_parameter(family: str) -> None:
    model = base(family)
    before = dict(model.named_parameters())
    copies = {name: tensor.clone() for name, tensor in before.items()}
    add_routers(model)
    after = dict(model.named_parameters())
    assert list(before) == [name for name in after if "_router." not in name]
    for name in before:
        assert after[name] is before[name]
        assert torch.equal(after[name], copies[name])
    path = next(name for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    added = {name.removeprefix("layers.") for name in router_state_dict(model)}
    assert {name.removeprefix(f"{path}.") for name in set(after) - set(before)} == added


def test_routers_can_be_added_again() -> None:
    model = routed()
    classes = {type(layer) for layer in routed_layers(model)}
    add_routers(remove_routers(model))
    assert {type(layer) for layer in routed_layers(model)} == classes
    with record_routing(model) as trace:
        model(Inputs((0,), padded=False).ids)
    assert len(trace.steps) == 1


def test_removing_routers_from_a_copy_leaves_the_original() -> None:
    model = routed()
    plain = remove_routers(copy.deepcopy(model))
    assert routed_layers(plain) == []
    assert not plain.model._forward_pre_hooks
    assert len(routed_layers(model)) == 3
    assert model.model._forward_pre_hooks


def _anatomy(model: torch.nn.Module) -> dict[str, object]:
    parts = dict(model.named_modules())
    return {
        "classes": {name: type(part) for name, part in parts.items()},
        "hooks": {name: len(part._forward_pre_hooks) for name, part in parts.items()},
        "keys": list(model.state_dict()),
        "attributes": {
            name: set(vars(part)) - {"_no_split_modules"} for name, part in parts.items()
        },
        "unsplit": set(model._no_split_modules),
    }
