import pytest
import torch
from torch import nn

from removals import static_loss
from runs import rows
from skipgpt.baselines.greedy import blockpruner
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.model.state import record_routing, routing_state
from skipgpt.model.surgery import add_routers, routers
from skipgpt.removal.units import constant_routes, sites_of
from skipgpt.routing.decision import Site
from skipgpt.routing.router import set_constant
from tiny import tiny_base, tiny_routed

PLANTED = [Site(1, "mlp"), Site(2, "attn")]


@pytest.fixture(scope="module")
def fitted() -> nn.Module:
    """A model that has learned to repeat, so that useful modules are useful; two are empty."""
    torch.manual_seed(0)
    model = tiny_base(initializer_range=0.2)
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    model.model.layers[2].self_attn.o_proj.weight.data.zero_()
    frozen = {"model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.o_proj.weight"}
    trained = [p for name, p in model.named_parameters() if name not in frozen]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(30):
        loss = model(rows(8), labels=rows(8)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return add_routers(model).eval()


def test_the_planted_useless_modules_are_found_first(fitted: nn.Module) -> None:
    order = sites_of(blockpruner(fitted, rows(8), 3))
    assert sorted(order[:2]) == PLANTED
    assert order[2] not in PLANTED
    dense = static_loss(fitted, rows(8), [])
    # An empty module adds exact zeros.
    assert static_loss(fitted, rows(8), PLANTED) == pytest.approx(dense, abs=1e-6)
    assert static_loss(fitted, rows(8), order) > dense + 1e-3


def test_each_removal_is_the_cheapest_one_left(fitted: nn.Module) -> None:
    order = sites_of(blockpruner(fitted, rows(8), 4))
    for n, site in enumerate(order):
        others = [other for other in routers(fitted) if other not in order[:n]]
        losses = {o: static_loss(fitted, rows(8), [*order[:n], o]) for o in others}
        assert losses[site] == min(losses.values())


def test_what_the_routers_say_does_not_matter(fitted: nn.Module) -> None:
    before = sites_of(blockpruner(fitted, rows(8), 3))
    state = [{k: t.clone() for k, t in r.state_dict().items()} for r in routers(fitted).values()]
    rule = routing_state(fitted).rule
    for n, router in enumerate(routers(fitted).values()):
        set_constant(router, -float(n))
    assert sites_of(blockpruner(fitted, rows(8), 3)) == before
    assert routing_state(fitted).rule == rule
    for router, tensors in zip(routers(fitted).values(), state, strict=True):
        router.load_state_dict(tensors)


def test_progress_counts_every_trial() -> None:
    seen: list[tuple[int, int]] = []
    blockpruner(tiny_routed(), rows(1), 2, on_step=lambda *pair: seen.append(pair))
    assert seen == [(n, 11) for n in range(1, 12)]


def test_constant_margins_let_the_dial_copy_the_removal(fitted: nn.Module) -> None:
    state = [{k: t.clone() for k, t in r.state_dict().items()} for r in routers(fitted).values()]
    units = blockpruner(fitted, rows(8), 3)
    order = sites_of(units)
    constant_routes(fitted, units)
    for removed in (1, 3):
        calibrate(fitted, rows(4), target=removed / 6)
        with record_routing(fitted) as trace, torch.no_grad():
            fitted(rows(2))
        kept = trace.keep_ratios()
        assert {site for site, ratio in kept.items() if ratio == 0} == set(order[:removed])
        static = static_loss(fitted, rows(8), order[:removed])
        assert perplexity(fitted, rows(8)).nll_per_token == pytest.approx(static, abs=1e-6)
    for router, tensors in zip(routers(fitted).values(), state, strict=True):
        router.load_state_dict(tensors)
