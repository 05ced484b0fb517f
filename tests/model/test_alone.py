"""One token alone runs or skips each module, without tensors of decisions: the same result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CLOSE, every_layout, routed
from skipgpt.model import alone
from skipgpt.model.alone import Ran, decide
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import deciding, execution, record_routing, routing_state
from skipgpt.routing.decision import RandomRoutes, Threshold

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
    ("family", "changes"),
    [
        ("llama", {"head": "mlp"}),
        ("llama", {"input": "module_input"}),
        ("llama", {"decides": "layer"}),
        ("llama", {"decides": "sequence"}),
        ("llama", {"kv": "skip"}),
        ("gpt_neox", {}),
    ],
)
@torch.no_grad()
def test_what_it_cannot_decide_is_left_to_the_layer(family: str, changes: dict[str, str]) -> None:
    assert decide(routed_layers(routed(family, **changes))[0], ONE) is None


@torch.no_grad()
def test_it_stands_back_where_more_than_bools_are_wanted() -> None:
    model = routed("llama")
    layer, state = routed_layers(model)[0], routing_state(model)
    assert decide(layer, ONE) is not None
    assert decide(layer, torch.cat([ONE, ONE])) is None
    assert decide(layer, torch.cat([ONE, ONE], 1)) is None
    with record_routing(model):
        assert decide(layer, ONE) is None
    with deciding(model, RandomRoutes(0.5)):
        assert decide(layer, ONE) is None
    with torch.enable_grad():
        assert decide(layer, ONE) is None
    for kind in ("gated", "dense"):
        with execution(model, kind):
            assert decide(layer, ONE) is None
    state.may_pack = False
    assert decide(layer, ONE) is None


@torch.no_grad()
def test_recording_changes_no_logit_of_decoding() -> None:
    model = routed("llama", normalize=True, stand_in=3)
    ids = torch.randint(1, 257, (1, 9), generator=torch.Generator().manual_seed(3))
    plain = decoded(model, ids)
    with record_routing(model) as trace:
        recorded = decoded(model, ids)
    torch.testing.assert_close(recorded, plain, **CLOSE)
    assert 0 < trace.sparsity() < 1
