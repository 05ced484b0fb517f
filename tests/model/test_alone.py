"""One token alone runs or skips each module, without tensors of decisions: the same result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CLOSE, every_layout, routed
from skipgpt.model import alone
from skipgpt.model.alone import Ran, decide, suits
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import deciding, execution, record_routing, routing_state
from skipgpt.routing.decision import DecisionRule, Forced, RandomRoutes, Site, Threshold

ROUTERS = {"plain": {}, "normalized": {"normalize": True}, "stand-ins": {"stand_in": 3}}
ONE = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))


def decoded(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of every token, each in a forward of its own."""
    cache, logits = None, []
    for token in ids.unbind(1):
        output = model(token[:, None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, 1)


@every_layout
@pytest.mark.parametrize("router", ROUTERS)
@torch.no_grad()
def test_token_by_token_it_gives_what_gated_gives(
    family: str, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = routed(family, **ROUTERS[router])
    ids = torch.randint(1, 257, (1, 9), generator=torch.Generator().manual_seed(3))
    seen: list[Ran] = []
    run = alone.run

    def watched(layer: nn.Module, entering: Tensor, ran: Ran, arguments: object) -> Tensor:
        seen.append(ran)
        return run(layer, entering, ran, arguments)

    monkeypatch.setattr(alone, "run", watched)
    got = decoded(model, ids)
    with execution(model, "gated"):
        expected = model(ids).logits
    torch.testing.assert_close(got, expected, **CLOSE)
    if not routed_layers(model)[0].family.is_parallel(routed_layers(model)[0]):
        assert len(seen) == 9 * 3
        assert len(set(seen)) > 2


@torch.no_grad()
def test_it_decides_as_the_threshold_does() -> None:
    model = routed("llama", normalize=True)
    layer = routed_layers(model)[0]
    hidden = torch.randn(200, 1, 1, 32)
    for threshold in (-1.0, 0.0, 0.7):
        with deciding(model, Threshold(threshold)):
            for token in hidden:
                attn, mlp = layer._decide(token)
                assert decide(layer, token) == Ran(bool(attn.keep), bool(mlp.keep))


@pytest.mark.parametrize(
    "changes", [{"head": "mlp"}, {"decides": "layer"}, {"decides": "sequence"}]
)
@torch.no_grad()
def test_routers_that_are_not_one_product_decide_by_tensors(changes: dict[str, str]) -> None:
    model = routed("llama", **changes)
    layer, ids = routed_layers(model)[0], torch.arange(1, 8)[None]
    assert suits(layer, ONE)
    assert decide(layer, ONE) is None
    got = decoded(model, ids)
    with execution(model, "gated"):
        torch.testing.assert_close(got, decoded(model, ids), **CLOSE)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"input": "module_input"}), ("llama", {"kv": "skip"}), ("gpt_neox", {})],
)
@torch.no_grad()
def test_what_it_cannot_run_is_left_to_the_twins(family: str, changes: dict[str, str]) -> None:
    assert not suits(routed_layers(routed(family, **changes))[0], ONE)


@torch.no_grad()
def test_it_stands_back_where_more_than_bools_are_wanted() -> None:
    model = routed("llama")
    layer, state = routed_layers(model)[0], routing_state(model)
    assert suits(layer, ONE)
    assert not suits(layer, torch.cat([ONE, ONE]))
    assert not suits(layer, torch.cat([ONE, ONE], 1))
    with torch.enable_grad():
        assert not suits(layer, ONE)
    for kind in ("gated", "dense"):
        with execution(model, kind):
            assert not suits(layer, ONE)
    state.may_pack = False
    assert not suits(layer, ONE)


@torch.no_grad()
def test_rules_other_than_a_threshold_decide_by_tensors() -> None:
    model = routed("llama")
    layer = routed_layers(model)[0]
    assert decide(layer, ONE) is not None
    with record_routing(model):
        assert decide(layer, ONE) is None
    for keep in (False, True):
        with deciding(model, Forced(default=keep)), record_routing(model) as trace:
            assert decide(layer, ONE) is None
            decoded(model, torch.arange(1, 5)[None])
        assert trace.sparsity() == 1 - keep
        assert len(trace.steps) == 4


@pytest.mark.parametrize("rule", [Threshold(0.3), RandomRoutes(0.4)])
@torch.no_grad()
def test_a_rule_decides_the_same_with_and_without_tensors(rule: DecisionRule) -> None:
    margins = torch.randn(50, 1, 1)
    torch.manual_seed(1)
    expected = [bool(rule(margin, Site(0, "mlp")).keep) for margin in margins]
    torch.manual_seed(1)
    assert [rule.keeps(margin.item(), Site(0, "mlp")) for margin in margins] == expected
    assert 0 < sum(expected) < 50


@torch.no_grad()
def test_recording_changes_no_logit_of_decoding() -> None:
    model = routed("llama", normalize=True, stand_in=3)
    ids = torch.randint(1, 257, (1, 9), generator=torch.Generator().manual_seed(3))
    plain = decoded(model, ids)
    with record_routing(model) as trace:
        recorded = decoded(model, ids)
    torch.testing.assert_close(recorded, plain, **CLOSE)
    assert 0 < trace.sparsity() < 1
