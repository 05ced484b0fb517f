import math

import pytest
import torch
from torch.nn.functional import log_softmax

from runs import rows
from skipgpt.errors import ConfigError
from skipgpt.evaluation.perplexity import Perplexity, perplexity, total_loss
from skipgpt.model.state import execution, record_routing
from skipgpt.model.surgery import remove_routers
from tiny import tiny_base, tiny_routed


@torch.no_grad()
def _by_hand(model: torch.nn.Module, blocks: torch.Tensor) -> float:
    """Nats a token, one token after another."""
    total = []
    for row in blocks:
        scores = log_softmax(model(row[None]).logits[0].double(), dim=-1)
        total += [-scores[n, token].item() for n, token in enumerate(row.tolist()[1:])]
    return sum(total) / len(total)


@pytest.mark.parametrize("kind", ["sparse", "gated", "dense"])
def test_the_loss_is_the_mean_over_all_predicted_tokens(kind: str) -> None:
    model, blocks = tiny_routed(initializer_range=0.2), rows(5)
    with execution(model, kind):
        result = perplexity(model, blocks, batch_size=2)
        expected = _by_hand(model, blocks)
    assert result.nll_per_token == pytest.approx(expected, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    assert result.tokens == 5 * 15


def test_dense_execution_is_the_base_model_and_skips_nothing() -> None:
    model, blocks = tiny_routed(initializer_range=0.2), rows(5)
    with execution(model, "dense"):
        result = perplexity(model, blocks)
    assert set(result.sparsity.values()) == {0.0}
    expected = _by_hand(remove_routers(model), blocks)
    assert result.nll_per_token == pytest.approx(expected, rel=1e-5)


def test_the_sparsity_is_that_of_the_same_run() -> None:
    model, blocks = tiny_routed(), rows(6)
    result = perplexity(model, blocks, batch_size=4)
    with record_routing(model) as trace, torch.no_grad():
        model(blocks)
    assert result.sparsity["module"] == pytest.approx(trace.sparsity(), abs=1e-9)
    assert result.sparsity["attn"] == pytest.approx(trace.sparsity("attn"), abs=1e-9)
    assert result.sparsity["mlp"] == pytest.approx(trace.sparsity("mlp"), abs=1e-9)
    assert 0 < result.sparsity["params"] < result.sparsity["module"]
    assert list(result.sparsity) == ["module", "attn", "mlp", "params", "flops"]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model, blocks = tiny_routed(initializer_range=0.2), rows(5)
    result, expected = perplexity(model, blocks, batch_size=batch_size), perplexity(model, blocks)
    assert result.nll_per_token == pytest.approx(expected.nll_per_token, rel=1e-6)
    assert result.sparsity == pytest.approx(expected.sparsity)


@pytest.mark.parametrize("kind", ["sparse", "gated"])
def test_keep_rates_are_those_of_each_layer_and_their_mean_is_what_is_not_skipped(
    kind: str,
) -> None:
    model, blocks = tiny_routed(initializer_range=0.2), rows(6)
    with execution(model, kind):
        measured = perplexity(model, blocks, batch_size=4)
    with record_routing(model) as trace, torch.no_grad():
        model(blocks)
    for module in ("attn", "mlp"):
        kept = [keep.double().mean().item() for keep in trace.steps[0].keeps(module)]
        assert measured.keep_rates[module] == pytest.approx(kept, abs=1e-12)
        skipped = 1 - sum(kept) / len(kept)
        assert measured.sparsity[module] == pytest.approx(skipped, abs=1e-12)
    with execution(model, "dense"):
        assert perplexity(model, blocks).keep_rates == {}


def test_a_model_in_training_is_measured_in_evaluation_mode_and_put_back() -> None:
    model = tiny_routed(attention_dropout=0.5)
    expected = total_loss(model, rows(4))
    model.train()
    assert total_loss(model, rows(4)) == expected
    assert model.training


def test_a_loss_beyond_all_bounds_is_still_a_number() -> None:
    model = tiny_routed()
    model.lm_head.weight.data.mul_(1e6)
    result = perplexity(model, rows(2))
    assert result.nll_per_token > 700
    assert math.isfinite(result.perplexity)


def test_a_model_without_routers_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="add_routers"):
        perplexity(tiny_base(), rows(2))


def test_a_result_reads_as_a_line() -> None:
    sparsity = {"module": 0.25, "attn": 0.3, "mlp": 0.2, "params": 0.1, "flops": 0.15}
    line = str(Perplexity(2.0, math.exp(2), 12_345, sparsity))
    assert line == (
        "perplexity 7.389, 2.0000 nats per token over 12,345 tokens; sparsity: "
        "module 25.0%, attn 30.0%, mlp 20.0%, params 10.0%, flops 15.0%"
    )
    assert str(Perplexity(2.0, math.exp(2), 9, {})).endswith("over 9 tokens")
