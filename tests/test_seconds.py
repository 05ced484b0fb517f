"""A budget in time: what is saved of the seconds of a forward, and what can be reached."""

from __future__ import annotations

import pytest
import torch

from skipgpt.config import RouterConfig, TimedForward
from skipgpt.cost import Forward, Savings, savings, sparsities, work
from skipgpt.cost.seconds import ModuleSeconds, time_savings
from skipgpt.errors import ConfigError
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import Site
from skipgpt.system.device_profile import Machine, store_profile
from tiny import tiny_base, tiny_routed

COMPUTE = Machine(flops=1e9, bandwidth=1e15, mlp_packing=1e-15, attn_packing=1e-15)
"""Nothing but products takes time."""
MEMORY = Machine(flops=1e15, bandwidth=1e9, mlp_packing=1e-15, attn_packing=1e-15)
"""Nothing but reading weights does."""


def test_a_prefill_bound_by_products_saves_the_flops() -> None:
    model = tiny_routed()
    keep = {site: (n % 5) / 4 for n, site in enumerate(routers(model))}
    timed = TimedForward("prefill", 2, 16)
    found = time_savings(model, timed, COMPUTE).share(keep)
    # One token per row has logits, of 16; that all rows move once is too fast to be seen.
    dense, run = (work(model, Forward(2, 16), each).flops for each in (None, keep))
    assert found == pytest.approx(1 - run / dense, abs=1e-3)


def test_decoding_alone_saves_the_weights_of_what_is_skipped() -> None:
    module = ModuleSeconds(MEMORY, tokens=1, weights=1000, number_bytes=4)
    assert module.at(0.25) == pytest.approx(0.25 * module.at(1.0))


def test_decoding_a_batch_saves_next_to_nothing_until_all_rows_skip() -> None:
    module = ModuleSeconds(MEMORY, tokens=8, weights=1000, number_bytes=4)
    assert module.at(0.5) > 0.99 * module.at(1.0)
    assert module.at(0.0) == 0.0


def test_what_packing_costs_is_never_paid_where_running_all_is_cheaper() -> None:
    module = ModuleSeconds(COMPUTE, tokens=64, weights=1000, number_bytes=4, packing=1.0)
    assert module.at(0.5) == module.at(1.0)


def test_packing_and_moving_rows_take_away_from_what_is_saved() -> None:
    module = ModuleSeconds(COMPUTE, 64, 10_000, 4, packing=1e-5, row=1e-7)
    products = COMPUTE.product_seconds(10_000, 32, 4)
    assert module.at(0.5) == pytest.approx(products + 1e-5 + 2 * (64 + 32) * 1e-7)


def test_a_stand_in_runs_for_what_skips() -> None:
    module = ModuleSeconds(COMPUTE, 64, 10_000, 4, stand_in=100)
    assert module.at(0.0) == pytest.approx(COMPUTE.product_seconds(100, 64, 4))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_keeping_everything_saves_less_than_nothing_by_what_routers_take(phase: str) -> None:
    model = tiny_routed(router=RouterConfig(stand_in=2))
    saved = time_savings(model, TimedForward(phase, 1, 32), MEMORY)
    assert saved.share(dict.fromkeys(routers(model), 1.0)) == pytest.approx(-saved.overhead)
    assert saved.overhead > 0


def test_a_removed_module_saves_its_keys_and_values_too_and_no_router_runs() -> None:
    store_profile(MEMORY, torch.device("cpu"), torch.float32)
    model, timed = tiny_routed(router=RouterConfig(normalize=True)), TimedForward("decode", 1, 32)
    keep = dict.fromkeys(routers(model), 1.0) | {Site(0, "attn"): 0.0, Site(1, "mlp"): 0.0}
    found = sparsities(model, keep, 8.0, timed, removed=True)["time"]
    # One token reads every weight once, and the keys and values of 32 tokens.
    base = tiny_base()
    weights = [
        sum(p.numel() for p in part.parameters())
        for part in (base.model.layers[0].self_attn, base.model.layers[1].mlp)
    ]
    config = base.config
    head_size = config.hidden_size // config.num_attention_heads
    cached = 2 * 32 * config.num_key_value_heads * head_size
    dense = len(base.model.layers) * (sum(weights) + cached) + base.lm_head.weight.numel()
    assert found == pytest.approx((sum(weights) + cached) / dense)
    # Of learned routes keys and values are computed all the same, and routers run.
    assert sparsities(model, keep, 8.0, timed)["time"] < found


def test_without_a_profile_no_seconds_are_counted() -> None:
    model = tiny_routed()
    keep = dict.fromkeys(routers(model), 0.5)
    assert "time" not in sparsities(model, keep, 8.0)
    store_profile(COMPUTE, torch.device("cpu"), torch.bfloat16)  # of another dtype
    assert "time" not in sparsities(model, keep, 8.0)


def test_under_kv_skip_the_attention_core_falls_with_the_square() -> None:
    model = tiny_routed(router=RouterConfig(kv="skip"))
    keep = {site: (n % 4) / 4 for n, site in enumerate(routers(model))}
    saved = savings(model, "flops", context=9.5).share(keep)
    # A token of 18 attends to 9.5 on average.
    dense, run = (work(model, Forward(1, 18, logits=18), each).flops for each in (None, keep))
    assert saved == pytest.approx(1 - run / dense, abs=1e-12)


def test_a_budget_out_of_reach_says_how_much_can_be_saved() -> None:
    attn, mlp = Site(0, "attn"), Site(0, "mlp")
    saved = Savings("flops", {attn: 0.15, mlp: -0.2}, overhead=0.01)
    saved.check_reach(0.14)
    with pytest.raises(ConfigError) as caught:
        saved.check_reach(0.25)
    assert str(caught.value) == (
        "planning the budget: got a target of 25.0% of FLOPs; expected at most 14.0%: so much is "
        "saved where every module is skipped that saves more than its stand-in costs; lower the "
        "target, lower router.stand_in, or count another budget, as in --budget modules"
    )


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 'joules'; expected modules, flops or time"):
        savings(tiny_routed(), "joules", 8.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"context": 0}, {"phase": "warm-up"}])
def test_a_forward_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TimedForward(**wrong)  # type: ignore[arg-type]


def test_the_dtype_of_a_model_is_that_of_its_profile() -> None:
    with pytest.raises(ConfigError, match="--dtype bfloat16"):
        savings(tiny_routed().to(torch.bfloat16), "time", 8.0)
