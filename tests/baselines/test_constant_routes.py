"""A static removal as routers that answer the same for every token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bases import deep, layer
from runs import logits, rows
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import RouterConfig
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.model.base import load_base
from skipgpt.model.state import record_routing, routing_state, use_rule
from skipgpt.model.surgery import add_routers
from skipgpt.removal.units import Unit, constant_routes, units_of
from skipgpt.routing.decision import Forced, Site, Threshold
from tiny import byte_tokenizer, tiny_base

MIXED: list[Unit] = [layer(3), (Site(1, "mlp"),), layer(4)]


def _skipped(model: torch.nn.Module) -> set[Site]:
    with record_routing(model) as trace, torch.no_grad():
        model(rows(3))
    ratios = trace.keep_ratios()
    assert set(ratios.values()) <= {0.0, 1.0}
    return {site for site, ratio in ratios.items() if ratio == 0}


@pytest.mark.parametrize("removals", [0, 1, 2, 3])
def test_exactly_these_units_are_skipped_by_every_token(removals: int) -> None:
    model = deep()
    wanted = MIXED[:removals]
    constant_routes(model, wanted)
    assert _skipped(model) == {site for unit in wanted for site in unit}
    with torch.no_grad():
        routed = model(rows(3)).logits
        with use_rule(model, Forced.without([site for unit in wanted for site in unit])):
            assert torch.equal(routed, model(rows(3)).logits)


def test_thresholds_go_through_the_order_unit_by_unit() -> None:
    model = deep()
    constant_routes(model, MIXED)
    with record_routing(model) as trace, torch.no_grad():
        model(rows(3))
    decided = trace.steps[0].decisions
    seen: list[set[float]] = [set() for _ in MIXED]
    for n, unit in enumerate(MIXED):
        for site in unit:
            margins = getattr(decided[site.layer], site.module).margin
            torch.testing.assert_close(margins, torch.full_like(margins, -1 + n / 3))
            seen[n].update(margins.flatten().tolist())
    assert [len(each) for each in seen] == [1] * len(MIXED)  # no threshold splits a unit
    routing_state(model).rule = Threshold(-0.6)
    assert _skipped(model) == {*layer(3), Site(1, "mlp")}


def test_what_was_calibrated_before_is_forgotten() -> None:
    model = deep()
    calibrate(model, rows(2), target=0.5)
    constant_routes(model, MIXED[:1])
    assert routing_state(model).curves is None
    assert routing_state(model).rule == Threshold(0.0)
    assert _skipped(model) == set(layer(3))


@pytest.mark.parametrize("router", [{"head": "mlp"}, {"normalize": True}, {"kv": "skip"}])
def test_any_router_can_be_constant(router: dict[str, object]) -> None:
    model = add_routers(tiny_base(num_hidden_layers=6), RouterConfig(**router)).eval()
    constant_routes(model, MIXED)
    assert _skipped(model) == {site for unit in MIXED for site in unit}


def test_a_checkpoint_of_it_skips_the_same(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model, _ = load_base(str(tmp_path / "base"))
    add_routers(model).eval()
    constant_routes(model, units_of(model, "layers")[1:2])
    save(model, tmp_path / "out", describe(model, str(tmp_path / "base"), stages=("router",)))
    loaded = load(tmp_path / "out")[0]
    assert _skipped(loaded) == set(layer(1))
    assert torch.equal(logits(loaded), logits(model))
