"""Mixture-of-Depths: selection by rank, its causal variant, and what scales a module's output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bases import deep
from cases import CLOSE, ONE_ROW, SITES, routed
from runs import rows, stage_trainer, tiny_config
from skipgpt.baselines.top_k import AboveThresholds, TopK, layer_thresholds, top_k_rule
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import add_routers, routed_layers, routers, train_only
from skipgpt.routing.decision import DecisionRule, Site
from skipgpt.routing.router import set_constant
from tiny import tiny_base

SITE = Site(1, "mlp")


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    sparsity=st.floats(0, 0.95),
    tied=st.booleans(),
)
def test_of_each_row_exactly_the_k_highest_scores_run(
    batch: int, tokens: int, sparsity: float, tied: bool
) -> None:
    margin = torch.zeros(batch, tokens) if tied else torch.randn(batch, tokens)
    decision = TopK(sparsity)(margin, SITE)
    count = max(1, round((1 - sparsity) * tokens))
    assert decision.keep.sum(1).tolist() == [count] * batch
    for row, keep in zip(margin, decision.keep, strict=True):
        if not keep.all():
            assert row[keep].min() >= row[~keep].max()


def test_the_score_is_the_gate_of_what_runs_and_its_gradient_comes_back() -> None:
    margin = torch.tensor([[0.5, -2.0, 3.0, 1.0]], requires_grad=True)
    for rule in (TopK(0.5), AboveThresholds({SITE: 0.75})):
        decision = rule(margin, SITE)
        assert decision.keep.tolist() == [[False, False, True, True]]
        assert decision.gate.tolist() == [[0.0, 0.0, 3.0, 1.0]]
        assert decision.margin is margin
        (gradient,) = torch.autograd.grad((decision.gate * 2).sum(), margin)
        assert gradient.tolist() == [[0.0, 0.0, 2.0, 2.0]]


def test_dense_layers_and_sites_without_a_threshold_run_everything_unscaled() -> None:
    margin = torch.tensor([[-5.0, 0.0, 7.0]])
    for rule in (TopK(0.9, frozenset({1})), AboveThresholds({Site(2, "mlp"): 0.0})):
        decision = rule(margin, SITE)
        assert decision.keep.all()
        assert decision.gate.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("layers", "sparsity", "expected"),
    [
        (6, 0.25, TopK(0.375, frozenset({0, 5}))),
        (3, 0.25, TopK(0.75, frozenset({0, 2}))),
        (2, 0.25, TopK(0.25)),
    ],
)
def test_the_first_and_the_last_layer_stay_dense_and_the_others_skip_the_more(
    layers: int, sparsity: float, expected: TopK
) -> None:
    assert top_k_rule(add_routers(tiny_base(num_hidden_layers=layers)), sparsity) == expected


def test_a_budget_beyond_the_layers_that_may_skip_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0\.5 over 3 layers.*at most 0\.33"):
        top_k_rule(add_routers(tiny_base(num_hidden_layers=3)), 0.5)


def test_the_budget_is_met_over_all_layers() -> None:
    model = deep()
    with _gated(model, top_k_rule(model, 0.25)), record_routing(model) as trace:
        model(rows(2, 16))
    assert trace.sparsity() == 0.25
    assert trace.keep_ratios()[Site(0, "mlp")] == trace.keep_ratios()[Site(5, "attn")] == 1


def test_a_score_of_one_leaves_a_modules_output_as_it_is() -> None:
    model = deep()
    for router in routers(model).values():
        set_constant(router, 1.0)
    with torch.no_grad(), execution(model, "dense"):
        expected = model(**ONE_ROW.given).logits
    with torch.no_grad(), _gated(model, TopK(0.0)):
        torch.testing.assert_close(model(**ONE_ROW.given).logits, expected, **CLOSE)


@torch.no_grad()
def test_the_score_scales_a_modules_output() -> None:
    model, seen = routed(), {}
    for router in routers(model).values():
        set_constant(router, 0.25)
    layer = routed_layers(model)[1]
    layer.post_attention_layernorm.register_forward_hook(lambda _, a, __: seen.update(read=a[0]))
    layer.mlp.register_forward_hook(lambda _, __, output: seen.update(update=output))
    layer.register_forward_hook(lambda _, __, output: seen.update(stream=output))
    with _gated(model, TopK(0.0)):
        model(**ONE_ROW.given)
    torch.testing.assert_close(seen["stream"], seen["read"] + 0.25 * seen["update"], **CLOSE)


def test_gradients_reach_every_router_that_selects() -> None:
    model = deep()
    train_only(model, "router")
    with _gated(model, top_k_rule(model, 0.25)):
        model(**ONE_ROW.given).logits.square().mean().backward()
    for site, router in routers(model).items():
        # Layer 2 adds nothing, so no score matters there; 0 and 5 are dense.
        moved = router.weight.grad is not None and bool(router.weight.grad.any())
        assert moved == (site.layer in (1, 3, 4)), site


def test_stage_router_trains_by_the_rule(tmp_path: Path) -> None:
    model = deep()
    rule = top_k_rule(model, 0.25)
    before = {site: router.weight.detach().clone() for site, router in routers(model).items()}
    config = tiny_config(router_stage__alpha=0, router_stage__steps=2)
    stage_trainer(model, "router", config, rows(), tmp_path, lambda _: rule).train()
    for site, router in routers(model).items():
        assert torch.equal(router.weight, before[site]) == (site.layer in rule.dense), site


def test_thresholds_keep_as_many_tokens_as_the_ranks_do() -> None:
    model, text = routed(), rows(12)
    rule = top_k_rule(model, 0.25)
    thresholds = layer_thresholds(model, text, rule)
    assert set(thresholds.values) == {site for site in SITES if site.layer == 1}
    with _gated(model, thresholds), record_routing(model) as trace, torch.no_grad():
        model(text)
    # The first module that selects sees what the ranks saw; the second a little else.
    assert trace.keep_ratios()[Site(1, "attn")] == 0.25
    assert trace.keep_ratios()[Site(1, "mlp")] == pytest.approx(0.25, abs=0.1)


def test_thresholds_of_whole_layers_are_alike_for_both_modules() -> None:
    model = routed(decides="layer")
    thresholds = layer_thresholds(model, rows(8), top_k_rule(model, 0.25))
    assert thresholds.values[Site(1, "attn")] == thresholds.values[Site(1, "mlp")]


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_thresholds_do_not_look_ahead_and_ranks_do(causal: bool) -> None:
    model, text = deep(), rows(4)
    rule: DecisionRule = top_k_rule(model, 0.4)
    if causal:
        rule = layer_thresholds(model, text, rule)
    changed = text.clone()
    changed[:, 8:] = rows(4, seed=6)[:, 8:]
    with _gated(model, rule):
        first, second = (model(each).logits[:, :8] for each in (text, changed))
    if causal:
        torch.testing.assert_close(first, second, **CLOSE)
    else:
        assert (first - second).abs().max() > 0.1


@contextmanager
def _gated(model: nn.Module, rule: DecisionRule) -> Iterator[None]:
    """Decide by a rule in the only execution that knows scores."""
    with execution(model, "gated"), use_rule(model, rule):
        yield
