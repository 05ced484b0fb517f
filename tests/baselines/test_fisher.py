"""The static choice from second-order costs removes what costs least."""

from __future__ import annotations

import torch

from cases import routed
from runs import rows
from skipgpt.baselines.registry import STATIC
from skipgpt.cost import savings
from skipgpt.fitting.costs import measure_costs
from skipgpt.routing.decision import Site


def test_modules_that_add_nothing_go_first() -> None:
    model = routed("llama")
    with torch.no_grad():
        for layer, part in ((2, "mlp.down_proj"), (0, "self_attn.o_proj")):
            model.model.layers[layer].get_submodule(part).weight.zero_()
    found = STATIC["fisher"].order(model, rows(4, 16), 2)
    assert set(found) == {(Site(2, "mlp"),), (Site(0, "attn"),)}


def test_per_flop_an_mlp_may_cost_more_than_an_attention() -> None:
    model, text = routed("llama"), rows(4, 16)
    costs = {site: each.value.mean().item() for site, each in measure_costs(model, text).items()}
    saved = savings(model, "flops", 8.5, removed=True).by_site
    plain, priced = (STATIC[n].order(model, text, 6) for n in ("fisher", "fisher-flops"))
    assert [unit[0] for unit in plain] == sorted(costs, key=lambda site: costs[site])
    assert [unit[0] for unit in priced] == sorted(costs, key=lambda s: costs[s] / saved[s])
