"""Execution `auto`: whichever twin is faster, and the same result."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import nn

from cases import BATCHES, CLOSE, LEFT_PADDED, ONE_ROW, base, every_layout, families_with, routed
from skipgpt.errors import ConfigError
from skipgpt.model.execution import run
from skipgpt.model.packing_cost import PackingCost
from skipgpt.model.state import count_routing, execution, record_routing, routing_state, use_rule
from skipgpt.model.surgery import add_routers, routed_layers
from skipgpt.routing.decision import Forced, ModuleDecision, Site, Threshold
from skipgpt.system.device_profile import Machine

SLOW = Machine(flops=1.0, bandwidth=1e12, mlp_packing=0.0, attn_packing=0.0)
"""Products take all the time there is: packing pays."""
QUICK = Machine(flops=1e30, bandwidth=1e30, mlp_packing=1.0, attn_packing=1.0)
"""Products take none: it does not."""
MACHINES = {"slow": SLOW, "quick": QUICK}
# Every second pair has each batch once, and the machines in turn.
PAIRS = [
    (batch, machine)
    for n, batch in enumerate(BATCHES)
    for machine in sorted(MACHINES, reverse=n % 2 == 1)
]


def auto(family: str, machine: Machine) -> nn.Module:
    model = routed(family)
    state = routing_state(model)
    state.execution = "auto"
    state.machines[torch.device("cpu"), torch.float32] = machine
    return model


class Watch:
    """A twin that counts its calls."""

    def __init__(self, twin: Callable[..., torch.Tensor]) -> None:
        self.calls, self._twin = 0, twin

    def __call__(self, *given: object) -> torch.Tensor:
        self.calls += 1
        return self._twin(*given)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Watch]:
    twins = {"gated": Watch(run.gated), "sparse": Watch(run.sparse)}
    for name, twin in twins.items():
        monkeypatch.setattr(run, name, twin)
    return twins


def test_auto_is_what_a_model_gets() -> None:
    assert routing_state(add_routers(base())).execution == "auto"


@families_with("batch, machine", PAIRS)
@torch.no_grad()
def test_it_gives_what_its_twins_give(family: str, batch: str, machine: str) -> None:
    model, inputs = auto(family, MACHINES[machine]), BATCHES[batch]
    got = model(**inputs.given).logits
    with execution(model, "gated"):
        expected = model(**inputs.given).logits
    for row, real in enumerate(inputs.real):
        chosen = real.bool()
        torch.testing.assert_close(got[row, chosen], expected[row, chosen], **CLOSE)


@pytest.mark.parametrize(
    ("machine", "used", "unused"), [(SLOW, "sparse", "gated"), (QUICK, "gated", "sparse")]
)
@torch.no_grad()
def test_it_packs_where_products_take_long(
    machine: Machine, used: str, unused: str, watched: dict[str, Watch]
) -> None:
    model = auto("llama", machine)
    model(ONE_ROW.given["input_ids"])
    assert watched[used].calls
    assert not watched[unused].calls


@torch.no_grad()
def test_a_token_alone_is_never_packed_or_multiplied(watched: dict[str, Watch]) -> None:
    model = auto("llama", QUICK)
    model(ONE_ROW.given["input_ids"][:, :1])
    assert not watched["gated"].calls


@pytest.mark.parametrize("keep", [False, True])
@torch.no_grad()
def test_all_or_none_needs_no_packing(keep: bool, watched: dict[str, Watch]) -> None:
    model = auto("llama", QUICK)
    with use_rule(model, Forced(default=keep)):
        model(ONE_ROW.given["input_ids"])
    assert not watched["gated"].calls


@every_layout
@torch.no_grad()
def test_where_nothing_is_skipped_no_router_runs(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = auto(family, SLOW), LEFT_PADDED
    dense = base(family)(**inputs.given).logits
    for layer in routed_layers(model):
        for router in (layer.attn_router, layer.mlp_router):
            router.last.weight.fill_(float("nan"))
    with use_rule(model, Threshold(-math.inf)), count_routing(model) as counts:
        logits = model(**inputs.given).logits
    assert torch.equal(logits[inputs.real.bool()], dense[inputs.real.bool()])
    assert set(counts.kept().values()) == {counts.tokens} == {int(inputs.real.sum())}


@torch.no_grad()
def test_at_sparsity_0_no_decision_is_made_that_nobody_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = auto("llama", QUICK), ONE_ROW.given["input_ids"]
    made = mock.Mock(wraps=ModuleDecision.all_kept)
    monkeypatch.setattr(ModuleDecision, "all_kept", made)
    with use_rule(model, Threshold(-math.inf)):
        model(ids)
        assert not made.called
        with count_routing(model) as counts:
            model(ids)
    assert made.called
    assert counts.sparsity() == 0


def test_packing_pays_from_some_share_of_skipped_tokens_on() -> None:
    layer = routed_layers(routed("llama"))[0]
    packing, size = PackingCost(layer), (64, 4)
    # 64 rows of the MLP take 2 * 64 * its weights; the fixed price is that of a quarter of them.
    weights = sum(p.numel() for p in layer.mlp.parameters())
    machine = Machine(1.0, 1e30, mlp_packing=2 * 16 * weights, attn_packing=0.0)
    pays = [packing.is_worth_packing(machine, "mlp", *size, kept) for kept in (63, 50, 46, 10)]
    assert pays == [False, False, True, True]
    moving = Machine(1e30, 1.0, mlp_packing=0.0, attn_packing=0.0)
    assert not packing.is_worth_packing(moving, "mlp", *size, 10)


def test_weights_that_are_read_for_one_token_are_read_for_all() -> None:
    layer = routed_layers(routed("llama"))[0]
    packing, size = PackingCost(layer), (8, 4)
    bound_by_reading = Machine(1e30, 1.0, mlp_packing=0.0, attn_packing=0.0)
    assert not packing.is_worth_packing(bound_by_reading, "mlp", *size, 1)
    assert packing.is_worth_packing(bound_by_reading, "mlp", *size, 0)


def test_weights_that_are_buffers_count() -> None:
    plain, held = (routed_layers(each)[0] for each in (routed("llama"), routed("llama")))
    down = held.mlp.down_proj
    del held.mlp.down_proj.weight
    down.register_buffer("weight", plain.mlp.down_proj.weight.detach())
    assert PackingCost(held)._weights == PackingCost(plain)._weights


def test_of_experts_those_count_that_a_token_runs() -> None:
    layer = routed_layers(routed("mixtral"))[0]
    experts = sum(p.numel() for p in layer.mlp.experts.parameters())
    rest = sum(p.numel() for p in layer.mlp.parameters()) - experts
    config = layer.self_attn.config
    share = config.num_experts_per_tok / config.num_local_experts
    assert share < 1
    assert PackingCost(layer)._weights["mlp"] == pytest.approx(rest + experts * share, abs=1)


def test_what_only_a_run_of_all_tokens_can_give_is_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = routed("llama", "eager")
    ids = ONE_ROW.given["input_ids"]
    with pytest.raises(ConfigError, match="output_attentions"):
        model(ids, output_attentions=True)
    routing_state(model).execution = "auto"
    with torch.no_grad(), record_routing(model) as trace, caplog.at_level("WARNING", "skipgpt"):
        for _ in range(2):
            output = model(ids, output_attentions=True)
        assert [each.getMessage() for each in caplog.records] == [
            "every token runs every module, nothing is saved: output_attentions=True"
        ]
        assert trace.sparsity() > 0
        torch.testing.assert_close(model(ids).logits, output.logits, **CLOSE)
    assert output.attentions[0].shape[-2:] == (ids.shape[1], ids.shape[1])
    assert routing_state(model).can_pack


@torch.no_grad()
def test_forced_sites_are_skipped_in_auto() -> None:
    model = auto("llama", SLOW)
    with use_rule(model, Forced({Site(0, "mlp"): False})), record_routing(model) as trace:
        model(ONE_ROW.given["input_ids"])
    assert trace.keep_ratios()[Site(0, "mlp")] == 0.0


@torch.no_grad()
def test_sequences_that_skip_attention_pay_where_their_keys_are_many() -> None:
    layer = routed_layers(routed("llama"))[0]
    packing, size = PackingCost(layer), (4, 4)
    machine = Machine(1e30, 1.0, mlp_packing=0.0, attn_packing=0.0)
    moved = 2 * 6 * 32 * 4
    for cached, expected in ((2 * moved - 8, False), (2 * moved + 8, True)):
        assert packing.is_worth_packing(machine, "attn", *size, 2, cached) is expected
