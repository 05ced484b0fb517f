import pytest
import torch

from cases import LEFT_PADDED, ONE_ROW, Inputs, every_layout, routed
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import train_only
from skipgpt.routing.decision import DecisionRule, Forced, GumbelSample, Site, Threshold


@pytest.mark.parametrize(
    "rule", [Threshold(), GumbelSample(1.0)], ids=lambda rule: type(rule).__name__
)
@every_layout
@torch.no_grad()
def test_the_traces_sparsity_equals_the_budgets(family: str, rule: DecisionRule) -> None:
    model = routed(family)
    for inputs in (ONE_ROW, LEFT_PADDED):
        with use_rule(model, rule), execution(model, "gated"), record_routing(model) as trace:
            model(**inputs.given)
        # One is a sum of six shares in float32, the other exact counts.
        assert trace.steps[0].sparsity().item() == pytest.approx(trace.sparsity(), abs=4e-7)
        assert 0.1 < trace.sparsity() < 0.9


@torch.no_grad()
def test_padding_counts_for_nothing() -> None:
    model, inputs = routed(), Inputs((3, 0, 6), padded=True)
    # Skip all padding and nothing else, then the other way round.
    for keep, expected in ((inputs.real, 0.0), (~inputs.real, 1.0)):
        routes = {Site(n, m): keep for n in range(3) for m in ("attn", "mlp")}
        with use_rule(model, Forced(routes)), record_routing(model) as trace:
            model(**inputs.given)
        assert trace.sparsity() == expected
        assert trace.steps[0].sparsity().item() == expected
        assert trace.margins().numel() == int(inputs.real.sum()) * 6


@torch.no_grad()
def test_attention_and_mlp_count_the_same() -> None:
    model, inputs = routed(), Inputs((0, 0), padded=False)
    removed = [Site(0, "attn"), Site(2, "attn"), Site(1, "mlp")]
    with use_rule(model, Forced.without(removed)), record_routing(model) as trace:
        model(inputs.ids)
    assert trace.sparsity() == pytest.approx(3 / 6)
    assert trace.sparsity("attn") == pytest.approx(2 / 3)
    assert trace.sparsity("mlp") == pytest.approx(1 / 3)
    assert {site for site, ratio in trace.keep_ratios().items() if ratio == 0} == set(removed)


@torch.no_grad()
def test_steps_weigh_by_their_tokens() -> None:
    model = routed()
    long, short = torch.ones(1, 9, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)
    with record_routing(model) as trace:
        with use_rule(model, Forced(default=False)):
            model(long)
        with use_rule(model, Forced(default=True)):
            model(short)
    assert trace.sparsity() == pytest.approx(9 / 12)


def test_the_budget_pulls_on_real_tokens_only() -> None:
    model, inputs = routed().train(), Inputs((3, 0, 6), padded=True)
    train_only(model, "router")
    rule = GumbelSample(1.0)
    with use_rule(model, rule), execution(model, "gated"), record_routing(model) as trace:
        model(**inputs.given, use_cache=False)
    step = trace.steps[0]
    # The gates of the last layer: earlier ones also move what later routers read.
    grads = torch.autograd.grad(step.sparsity(), step.gates()[-2:])
    # Each real decision weighs one over (24 real tokens x 6 modules).
    expected = -inputs.real.float() / (24 * 6)
    for grad in grads:
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=0)
