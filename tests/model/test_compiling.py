"""`torch.compile`, traced only (backend `eager`): where it breaks the graph is what matters."""

import re
from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters

from cases import Inputs, base, with_routers
from reference import decoder_layers
from skipgpt.model.state import execution, routing_state, use_rule
from skipgpt.model.surgery import train_only
from skipgpt.routing.decision import RandomRoutes, StraightThrough
from skipgpt.system.device_profile import Machine
from tiny import OLDEST

# Not Bloom: Dynamo itself warns about the activation function of its MLP.
LAYOUTS = ["llama", "gemma3_text", "gpt_neox", "gpt2", "falcon", "mixtral", "deepseek_v3"]
# Masks with the keys of skipped tokens are made alike in all families, of windows and without.
GATED = [*((family, "dense") for family in LAYOUTS), ("gemma3_text", "skip")]
not_on_the_oldest_pins = pytest.mark.skipif(OLDEST, reason="torch is the same there")
OURS = r"Skip calling `torch.compiler.disable\(\)`d function\n.*<function (\w+) at"
"""Why a graph breaks at what is run sparsely."""


def routed(family: str = "llama", **router: object) -> torch.nn.Module:
    """Two layers, which may differ: each more is traced once more."""
    model = base(family)
    del decoder_layers(model)[2:]
    model.config.num_hidden_layers = 2
    return with_routers(model, **router)


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch._dynamo.reset()
    counters.clear()


def breaks() -> dict[str, int]:
    """How often graphs broke at a function, by torch 2.13: a layer's code is traced for several.

    Torch's own `explain` traces everything once more.
    """
    found = Counter[str]()
    for reason, count in counters["graph_break"].items():
        match = re.match(OURS, reason)
        assert match, reason
        found[match[1]] += count
    return found


@pytest.mark.parametrize(("family", "kv"), (GATED[0], GATED[-1]) if OLDEST else GATED)
@torch.no_grad()
def test_gated_execution_is_one_graph(family: str, kv: str) -> None:
    model, inputs = routed(family, kv=kv), Inputs((3, 0), padded=True)
    with execution(model, "gated"):
        expected = model(**inputs.given, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        actual = compiled(**inputs.given, use_cache=False).logits
    torch.testing.assert_close(actual[inputs.real], expected[inputs.real], rtol=0, atol=1e-5)


def test_the_gradient_of_a_routers_training_step_goes_through_one_graph() -> None:
    model, inputs = routed(), Inputs((0, 0), padded=False)
    parameters = train_only(model, "router")
    with execution(model, "gated"), use_rule(model, StraightThrough()):
        expected = torch.autograd.grad(_loss(model, inputs), parameters)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        actual = torch.autograd.grad(_loss(compiled, inputs), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert max(grad.abs().max() for grad in expected) > 1e-3


@not_on_the_oldest_pins
@torch.no_grad()
def test_the_graph_breaks_at_sparse_modules_only_and_gives_the_same_logits() -> None:
    model, inputs = routed(), Inputs((3, 0, 6), padded=True)
    expected = model(**inputs.given, use_cache=False).logits
    compiled = torch.compile(model, backend="eager")
    actual = compiled(**inputs.given, use_cache=False).logits
    torch.testing.assert_close(actual[inputs.real], expected[inputs.real], rtol=0, atol=1e-5)
    assert breaks() == {"plan": 7, "sparse": 4}
    with use_rule(model, RandomRoutes(1.0)):  # other routes, other shapes, no stale graph
        nothing = compiled(**inputs.given, use_cache=False).logits
    assert (nothing - actual)[inputs.real].abs().max() > 1e-2


@not_on_the_oldest_pins
@pytest.mark.parametrize("packs", [True, False])
@torch.no_grad()
def test_auto_breaks_the_graph_where_it_chooses_and_where_it_packs(packs: bool) -> None:
    model, inputs = routed(), Inputs((0, 0), padded=False)
    state = routing_state(model)
    price = 0.0 if packs else 1.0
    state.machines[torch.device("cpu"), torch.float32] = Machine(1e6, 1e30, price, price)
    with execution(model, "gated"):
        expected = model(inputs.ids, use_cache=False).logits
    state.execution = "auto"
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        actual = compiled(inputs.ids, use_cache=False).logits
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert breaks() == ({"plan": 7, "sparse": 4} if packs else {"plan": 7})


def _loss(model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    logits = model(inputs.ids, use_cache=False).logits
    return logits.square().mean()
