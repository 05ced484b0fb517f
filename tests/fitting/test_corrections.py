"""Routers are corrected by what decisions cost under the routes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import base, routed
from reference import decoder_layers, hooked_logits
from skipgpt.cost import Savings, saved_by_router, savings
from skipgpt.fitting.corrections import (
    apply_corrections,
    corrections,
    measure_values,
    predict_error,
    price_of,
)
from skipgpt.fitting.gated_passes import SiteValues
from skipgpt.fitting.heads import add_linear, last_inputs
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import Site

TEXT = torch.randint(1, 250, (2, 7), generator=torch.Generator().manual_seed(3))


def _quiet(model: nn.Module) -> nn.Module:
    """Make modules add little, so that an expansion to second order is nearly exact."""
    with torch.no_grad():
        for layer in decoder_layers(model):
            layer.self_attn.o_proj.weight *= 0.005
            layer.mlp.down_proj.weight *= 0.005
    return model.requires_grad_(False)


def test_a_value_is_what_the_divergence_gains_when_one_token_skips_one_module() -> None:
    model, plain = _quiet(routed("llama")), _quiet(base("llama"))
    found = measure_values(model, TEXT, 0.0, draws=1000)
    kept = {site: each.margin.reshape(TEXT.shape) > 0 for site, each in found.items()}

    def divergence(at: Site | None = None, token: int = 0, keep: float = 0.0) -> float:
        def gate(layer: int, module: str, entering: Tensor) -> Tensor:
            gates = kept[Site(layer, module)].float().clone()  # type: ignore[arg-type]
            if at == (layer, module):
                gates.view(-1)[token] = keep
            return gates

        routes = hooked_logits(plain, {"input_ids": TEXT}, gate).double().log_softmax(-1)
        return (dense.exp() * (dense - routes)).sum().item()

    dense = plain(input_ids=TEXT).logits.double().log_softmax(-1)
    for site, each in found.items():
        exact = [
            divergence(site, token, 0.0) - divergence(site, token, 1.0)
            for token in range(TEXT.numel())
        ]
        missed = (each.value - torch.tensor(exact)).abs().mean()
        assert missed < 0.1 * torch.tensor(exact).abs().mean()  # labels are drawn


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = routed("llama", stand_in=3).requires_grad_(False)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    logits = model(input_ids=TEXT).logits
    measure_values(model, TEXT, 0.0, layers=[1])
    assert routing_state(model).execution == "sparse"
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert torch.equal(model(input_ids=TEXT).logits, logits)


def _correct(
    model: nn.Module, found: dict[Site, SiteValues], saved: Savings, by_token: bool = True
) -> None:
    price = price_of(model, found, saved, 0.0)
    assert price is not None
    apply_corrections(model, corrections(model, found, saved, 0.0, price, by_token))


def _made(model: nn.Module, slope: Tensor, tokens: int = 6000) -> dict[Site, SiteValues]:
    """Values that margins predict up to a factor of 2 at odd layers, and up to a slope."""
    saved = savings(model, "flops", 4.0)
    found = {}
    for site, router in routers(model).items():
        read = torch.randn(tokens, 32)
        margin = router.margin(read).detach()
        off = (1 + site.layer % 2) * (1 + read @ slope)
        value = 0.01 * saved.by_site[site] * margin.exp() * off * torch.rand(tokens).mul(2)
        found[site] = SiteValues(read, margin, value)
    return found


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_margins_move_by_what_they_missed(head: str) -> None:
    model = routed("llama", head=head).requires_grad_(False)
    slope = torch.zeros(32)
    slope[3] = 0.1
    found, saved = _made(model, slope), savings(model, "flops", 4.0)
    _correct(model, found, saved)
    shifts, slopes = [], []
    for site, each in found.items():
        moved = routers(model)[site].margin(each.read) - each.margin
        shifts.append(moved.mean().item())
        slopes.append(np.polyfit(each.read[:, 3].numpy(), moved.numpy(), 1)[0])
    even, odd = shifts[:2], shifts[2:4]
    assert np.mean(odd) - np.mean(even) == pytest.approx(math.log(2), abs=0.08)
    if head == "linear":  # the other reads no single input
        assert slopes == pytest.approx([0.07] * 6, abs=0.03)  # less than 0.1, by the ridge


def test_by_module_alone_all_tokens_move_alike() -> None:
    model = routed("llama").requires_grad_(False)
    found, saved = _made(model, torch.full((32,), 0.05)), savings(model, "flops", 4.0)
    _correct(model, found, saved, by_token=False)
    for site, each in found.items():
        moved = routers(model)[site].margin(each.read) - each.margin
        torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=0, atol=1e-5)


def test_sites_without_tokens_near_the_threshold_stay() -> None:
    model = routed("llama").requires_grad_(False)
    found, saved = _made(model, torch.zeros(32)), savings(model, "flops", 4.0)
    assert price_of(model, found, saved, 80.0) is None
    assert corrections(model, found, saved, 80.0, 1.0) == {}
    for site, each in found.items():
        assert torch.equal(routers(model)[site].margin(each.read), each.margin)


def test_the_errors_are_regressed_as_an_independent_solver_does() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(500, 6, generator=draw), 0.1 + torch.rand(500, generator=draw)
    error = inputs @ torch.arange(6.0) / 5 + torch.randn(500, generator=draw)
    found = predict_error(inputs, error, weight)
    x, y, w = inputs.double().numpy(), error.double().numpy(), weight.double().numpy()
    # Ridge as least squares on rows that ask for zeros.
    root = np.sqrt(w)[:, None]
    candidates = []
    for ridge in (0.3, 1.0, 3.0, 10.0):
        rows = np.vstack([x * root, np.eye(6) * np.sqrt(ridge * w.sum())])
        candidates.append(
            np.linalg.lstsq(rows, np.append(y * root[:, 0], np.zeros(6)), rcond=None)[0]
        )
    assert min(np.abs(each - found.numpy()).max() for each in candidates) < 1e-4
    assert predict_error(inputs, torch.randn(500, generator=draw), weight) is None


def test_a_map_of_what_the_last_layer_reads_is_added_to_the_margin() -> None:
    for head in ("linear", "mlp"):
        router = next(iter(routers(routed("llama", head=head)).values()))
        read = torch.randn(5, 32)
        inputs, before = last_inputs(router, read), router.margin(read)
        weight = torch.randn(inputs.shape[1])
        add_linear(router, weight, 0.5)
        torch.testing.assert_close(router.margin(read), before + inputs @ weight + 0.5)


def test_a_corrected_model_skips_where_the_price_is_lowest() -> None:
    """What sites pay per share near the threshold differs less after a correction."""
    model = _quiet(routed("llama", normalize=True))
    text = torch.randint(1, 250, (64, 16), generator=torch.Generator().manual_seed(5))
    saved = savings(model, "flops", 8.5)

    def spread() -> float:
        found = measure_values(model, text, 0.0, draws=4, batch_size=16)
        prices = [price_of(model, {site: each}, saved, 0.0) for site, each in found.items()]
        return float(np.std(np.log(prices)))

    before = spread()
    found = measure_values(model, text, 0.0, draws=4, batch_size=16, seed=1)
    _correct(model, found, saved, by_token=False)
    assert spread() < 0.85 * before


def test_values_without_end_far_from_the_threshold_do_no_harm() -> None:
    model = routed("llama").requires_grad_(False)
    found, saved = _made(model, torch.zeros(32)), savings(model, "flops", 4.0)
    for each in found.values():
        each.margin[0] = -200.0
    _correct(model, found, saved)
    assert all(p.isfinite().all() for r in routers(model).values() for p in r.parameters())


def test_where_skipping_gains_nothing_is_corrected() -> None:
    model = routed("llama").requires_grad_(False)
    found, saved = _made(model, torch.zeros(32)), savings(model, "flops", 4.0)
    for each in found.values():
        each.value.neg_()
    assert price_of(model, found, saved, 0.0) is None


def test_in_several_groups_of_layers_the_corrections_are_the_same() -> None:
    model = routed("llama", normalize=True).requires_grad_(False)
    text = torch.randint(1, 250, (64, 16), generator=torch.Generator().manual_seed(5))
    saved, made = savings(model, "flops", 8.5), []
    for groups in ([[0, 1, 2]], [[2], [0], [1]]):
        parts = [measure_values(model, text, 0.0, layers=layers) for layers in groups]
        prices = {price_of(model, part, saved, 0.0) for part in parts}
        assert len(prices) == 1
        each = {}
        for part in parts:
            each |= corrections(model, part, saved, 0.0, 1.0)
        made.append(each)
    together, apart = made
    assert together.keys() == apart.keys()
    assert len(together) == 6
    for site, one in together.items():
        assert apart[site][0] == pytest.approx(one[0], abs=1e-5)


def test_a_router_of_a_whole_layer_saves_both_modules() -> None:
    model = routed("llama", decides="layer")
    saved = savings(model, "flops", 4.0)
    found = saved_by_router(model, saved)
    for layer in range(3):
        both = saved.by_site[Site(layer, "attn")] + saved.by_site[Site(layer, "mlp")]
        assert found[Site(layer, "attn")] == pytest.approx(both)
