"""One token of each sequence: modules run or not, without tensors of decisions; the same result."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from cases import CLOSE, every_layout, routed
from skipgpt.model.execution import decode
from skipgpt.model.execution.decode import decide
from skipgpt.model.state import execution, record_routing, routing_state, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import (
    DecisionRule,
    Forced,
    ModuleDecision,
    RandomRoutes,
    Site,
    Threshold,
)
from skipgpt.routing.router import set_constant
from skipgpt.system.device_profile import Machine

ROUTERS = {"plain": {}, "normalized": {"normalize": True}, "stand-ins": {"stand_in": 3}}
ONE = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
MACHINES = {
    "packs": Machine(flops=1.0, bandwidth=1e12, mlp_packing=0.0, attn_packing=0.0),
    "runs all": Machine(flops=1e30, bandwidth=1e30, mlp_packing=1.0, attn_packing=1.0),
    "packs attention": Machine(flops=1e30, bandwidth=1e3, mlp_packing=1.0, attn_packing=0.0),
}


def decoded(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of every token, each in a forward of its own."""
    cache, logits = None, []
    for token in ids.unbind(1):
        output = model(token[:, None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, 1)


Decided = tuple[ModuleDecision, ModuleDecision]


def assert_alike(got: Decided, expected: Decided) -> None:
    for each, wanted in zip(got, expected, strict=True):
        assert torch.equal(each.keep, wanted.keep)
        assert torch.equal(each.gate, wanted.gate)
        assert each.kept == int(wanted.keep.sum())


Step = tuple[str, int, str | None]
"""A router, the number of sequences, and a machine."""
# Every router, batch and machine; all of them together are tried on a Llama.
PAIRED = [
    ("plain", 1, None),
    ("normalized", 3, "packs"),
    ("stand-ins", 1, "packs attention"),
    ("stand-ins", 3, "runs all"),
]


@pytest.mark.parametrize("step", list(product(ROUTERS, [1, 3], [None, *MACHINES])), ids=str)
@torch.no_grad()
def test_token_by_token_it_gives_what_gated_gives(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compare("llama", step, monkeypatch)


@every_layout
@pytest.mark.parametrize("step", PAIRED, ids=str)
@torch.no_grad()
def test_every_layout_gives_what_gated_gives(
    family: str, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compare(family, step, monkeypatch)


def _compare(family: str, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    router, batch, machine = step
    model = routed(family, **ROUTERS[router])
    state = routing_state(model)
    if machine is not None:
        state.execution = "auto"
        state.machines[torch.device("cpu"), torch.float32] = MACHINES[machine]
    ids = torch.randint(1, 257, (batch, 9), generator=torch.Generator().manual_seed(3))
    seen: list[int] = []

    def watched(layer: nn.Module, entering: Tensor) -> Decided | None:
        if (decided := decide(layer, entering)) is not None:
            seen.extend(each.kept for each in decided)
        return decided

    monkeypatch.setattr(decode, "decide", watched)
    got = decoded(model, ids)
    with execution(model, "gated"):
        expected = model(ids).logits
    torch.testing.assert_close(got, expected, **CLOSE)
    assert len(seen) == 9 * 3 * 2
    assert {0, batch} <= set(seen)
    assert len(set(seen)) > 1 + (batch > 1)


@torch.no_grad()
def test_it_decides_as_the_threshold_does() -> None:
    model = routed("llama", normalize=True)
    layer = routed_layers(model)[0]
    hidden = torch.randn(50, 4, 1, 32)
    for threshold in (-1.0, 0.0, 0.7):
        with use_rule(model, Threshold(threshold)):
            for tokens in hidden:
                assert_alike(decide(layer, tokens), layer._decide(tokens))


@pytest.mark.parametrize("margin", [0.1, 0.3, -0.7])
@torch.no_grad()
def test_a_margin_at_the_threshold_is_below_it_in_numbers_as_in_tensors(margin: float) -> None:
    model = routed("llama")
    layer = routed_layers(model)[0]
    for router in (layer.attn_router, layer.mlp_router):
        set_constant(router, margin)
    with use_rule(model, Threshold(margin)):
        assert_alike(decide(layer, ONE), layer._decide(ONE))


@pytest.mark.parametrize(
    "changes", [{"head": "mlp"}, {"decides": "layer"}, {"decides": "sequence"}]
)
@torch.no_grad()
def test_routers_that_are_not_one_product_decide_by_tensors(changes: dict[str, str]) -> None:
    model = routed("llama", **changes)
    layer, ids = routed_layers(model)[0], torch.arange(1, 8)[None]
    assert decide(layer, ONE) is None
    got = decoded(model, ids)
    with execution(model, "gated"):
        torch.testing.assert_close(got, decoded(model, ids), **CLOSE)


@pytest.mark.parametrize("changes", [{"input": "module_input"}, {"kv": "skip"}])
@torch.no_grad()
def test_what_it_cannot_decide_is_left_to_tensors(changes: dict[str, str]) -> None:
    assert decide(routed_layers(routed("llama", **changes))[0], ONE) is None


@torch.no_grad()
def test_it_stands_back_where_more_than_bools_are_wanted() -> None:
    model = routed("llama")
    layer, state = routed_layers(model)[0], routing_state(model)
    assert decide(layer, ONE) is not None
    assert decide(layer, ONE.expand(decode.MOST, 1, 32)) is not None
    assert decide(layer, ONE.expand(decode.MOST + 1, 1, 32)) is None
    assert decide(layer, torch.cat([ONE, ONE], 1)) is None
    with torch.enable_grad():
        assert decide(layer, ONE) is None
    for kind in ("gated", "dense"):
        with execution(model, kind):
            assert decide(layer, ONE) is None
    state.can_pack = False
    assert decide(layer, ONE) is None


@torch.no_grad()
def test_rules_other_than_a_threshold_decide_by_tensors() -> None:
    model = routed("llama")
    layer = routed_layers(model)[0]
    assert decide(layer, ONE) is not None
    with record_routing(model):
        assert decide(layer, ONE) is None
    for keep in (False, True):
        with use_rule(model, Forced(default=keep)), record_routing(model) as trace:
            assert decide(layer, ONE) is None
            decoded(model, torch.arange(1, 5)[None])
        assert trace.sparsity() == 1 - keep
        assert len(trace.steps) == 4


@pytest.mark.parametrize("rule", [Threshold(0.3), RandomRoutes(0.4)])
@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
def test_a_rule_decides_the_same_with_and_without_tensors(rule: DecisionRule, batch: int) -> None:
    margins, site = torch.randn(50, batch, 1), Site(0, "mlp")
    torch.manual_seed(1)
    expected = [rule(margin, site).keep.flatten().tolist() for margin in margins]
    torch.manual_seed(1)
    assert [rule.keeps(margin.flatten().tolist(), site) for margin in margins] == expected
    assert 0 < sum(map(sum, expected)) < 50 * batch


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_recording_changes_no_logit_of_decoding(batch: int) -> None:
    model = routed("llama", normalize=True, stand_in=3)
    ids = torch.randint(1, 257, (batch, 9), generator=torch.Generator().manual_seed(3))
    plain = decoded(model, ids)
    with record_routing(model) as trace:
        recorded = decoded(model, ids)
    torch.testing.assert_close(recorded, plain, **CLOSE)
    assert 0 < trace.sparsity() < 1
