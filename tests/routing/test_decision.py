import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gumbel_softmax

from skipgpt.model.packing import pack_columns, take, take_mask
from skipgpt.routing.decision import (
    DecisionRule,
    Forced,
    GumbelSample,
    RandomRoutes,
    Site,
    StraightThrough,
    Threshold,
)

SITE = Site(0, "attn")
DRAWS = 40_000
# Five standard deviations of a share of 40,000 draws, at most 0.5 / sqrt(40,000) each. Draws are
# seeded, so this passes always or never; it is the size of error that the test can see.
SAMPLING = 5 * 0.5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("threshold", [-1.5, 0.0, 0.25])
def test_a_threshold_keeps_what_is_above_it_and_skips_equality(threshold: float) -> None:
    margin = torch.tensor([[threshold - 0.5, threshold, threshold + 0.5]])
    decision = Threshold(threshold)(margin, SITE)
    assert decision.keep.tolist() == [[False, False, True]]
    assert decision.gate.tolist() == [[0.0, 0.0, 1.0]]
    assert decision.margin is margin


def test_keep_all_keeps_even_the_lowest_margin() -> None:
    assert Threshold(-math.inf)(torch.tensor([[-1e30, 0.0]]), SITE).keep.all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("margin", [-2.0, 0.0, 0.7])
def test_gumbel_samples_are_distributed_as_torchs_gumbel_softmax(
    margin: float, temperature: float
) -> None:
    margins = torch.full((1, DRAWS), margin, requires_grad=True)
    decision = GumbelSample(temperature)(margins, SITE)
    soft_gradient = torch.autograd.grad(decision.gate.sum(), margins)[0].flatten()

    # Split the margin unevenly over two logits: only their difference may count.
    logits = torch.tensor([1.25 * margin, 0.25 * margin]).expand(DRAWS, 2)
    theirs = gumbel_softmax(logits, tau=temperature)[:, 0]

    kept = decision.keep.float().mean().item()
    assert kept == pytest.approx((theirs > 0.5).float().mean().item(), abs=2 * SAMPLING)
    assert kept == pytest.approx(1 / (1 + math.exp(-margin)), abs=SAMPLING)
    # The whole soft distribution, seen through the gradient s(1 - s) / temperature of its values.
    expected = theirs * (1 - theirs) / temperature
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        ours, other = soft_gradient.quantile(share), expected.quantile(share)
        # The gradient's range is 0 to 0.25 / temperature; sampling moves a quantile by 1 % of it.
        assert ours.item() == pytest.approx(other.item(), abs=0.01 * 0.25 / temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_the_gumbel_gates_gradient_is_the_analytic_one(temperature: float) -> None:
    margin = torch.randn(3, 50, requires_grad=True)
    torch.manual_seed(5)
    decision = GumbelSample(temperature)(margin, SITE)
    torch.manual_seed(5)
    uniform = torch.rand(3, 50).clamp(1e-7, 1 - 1e-7)
    soft = torch.sigmoid((margin.detach() + uniform.logit()) / temperature)

    (gradient,) = torch.autograd.grad(decision.gate.sum(), margin)

    torch.testing.assert_close(gradient, soft * (1 - soft) / temperature)
    assert torch.equal(decision.keep, soft > 0.5)


@pytest.mark.parametrize("rule", [GumbelSample(0.7), StraightThrough(0.7)], ids=str)
def test_training_gates_are_exactly_zero_or_one(rule: DecisionRule) -> None:
    margin = torch.randn(20, 50, requires_grad=True)
    decision = rule(margin, SITE)
    assert torch.equal(decision.gate, decision.keep.float())
    assert decision.keep.any()
    assert not decision.keep.all()


def test_gumbel_noise_survives_extreme_margins() -> None:
    margin = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    decision = GumbelSample(1.0)(margin, SITE)
    (gradient,) = torch.autograd.grad(decision.gate.sum(), margin)
    assert decision.gate.tolist() == [[0.0, 1.0]]
    assert gradient.isfinite().all()


def test_straight_through_decides_by_sign_and_passes_the_sigmoids_gradient() -> None:
    margin = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    decision = StraightThrough(2.0)(margin, SITE)
    assert decision.keep.tolist() == [[False, False, True]]
    (gradient,) = torch.autograd.grad(decision.gate.sum(), margin)
    soft = torch.sigmoid(margin.detach() / 2)
    torch.testing.assert_close(gradient, soft * (1 - soft) / 2)


def test_forced_routes_take_bools_tensors_and_the_default() -> None:
    margin = torch.zeros(2, 3)
    tensor = torch.tensor([[True, False, True], [False, False, True]])
    rule = Forced({Site(0, "attn"): False, Site(1, "mlp"): tensor}, default=True)
    assert not rule(margin, Site(0, "attn")).keep.any()
    assert torch.equal(rule(margin, Site(1, "mlp")).keep, tensor)
    assert rule(margin, Site(0, "mlp")).keep.all()
    assert rule(margin, Site(1, "mlp")).gate.tolist() == tensor.float().tolist()


def test_forced_routes_of_another_shape_are_refused() -> None:
    with pytest.raises(RuntimeError, match="expanded size"):
        Forced({SITE: torch.ones(2, 4, dtype=torch.bool)})(torch.zeros(2, 3), SITE)


def test_static_removal_skips_the_named_sites_only() -> None:
    rule = Forced.without([Site(1, "mlp")])
    assert not rule(torch.ones(1, 4), Site(1, "mlp")).keep.any()
    assert rule(torch.full((1, 4), -9.0), Site(1, "attn")).keep.all()


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.8, 1.0])
def test_random_routes_skip_the_share_asked_for(sparsity: float) -> None:
    keep = RandomRoutes(sparsity)(torch.zeros(1, DRAWS), SITE).keep
    tolerance = 0 if sparsity in (0.0, 1.0) else SAMPLING
    assert 1 - keep.float().mean().item() == pytest.approx(sparsity, abs=tolerance)


def test_random_routes_take_a_rate_for_each_site() -> None:
    rates = {Site(0, "attn"): 0.0, Site(0, "mlp"): 0.7, Site(1, "attn"): 1.0}
    margin = torch.zeros(1, DRAWS)
    skipped = {
        site: 1 - RandomRoutes(rates)(margin, site).keep.float().mean().item() for site in rates
    }
    assert skipped[Site(0, "attn")] == 0
    assert skipped[Site(1, "attn")] == 1
    assert skipped[Site(0, "mlp")] == pytest.approx(0.7, abs=SAMPLING)


def test_the_decision_of_a_row_expands_to_all_its_tokens_with_its_gradient() -> None:
    margin = torch.tensor([[1.0], [-2.0]], requires_grad=True)
    decision = StraightThrough(2.0)(margin, SITE).expanded(torch.Size((2, 3)))
    assert decision.keep.tolist() == [[True] * 3, [False] * 3]
    assert decision.gate.tolist() == [[1.0] * 3, [0.0] * 3]
    assert decision.margin.tolist() == [[1.0] * 3, [-2.0] * 3]
    (gradient,) = torch.autograd.grad(decision.gate.sum(), margin)
    soft = torch.sigmoid(margin.detach() / 2)
    torch.testing.assert_close(gradient, 3 * soft * (1 - soft) / 2)


keeps = (
    st.integers(1, 4)
    .flatmap(
        lambda tokens: st.lists(
            st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=1, max_size=4
        )
    )
    .map(lambda rows: torch.tensor(rows))
)


@given(keep=keeps)
def test_packing_and_unpacking_gives_every_kept_token_back_in_its_place(keep: Tensor) -> None:
    source = torch.arange(1.0, keep.numel() + 1).view(*keep.shape, 1).expand(-1, -1, 2)
    columns, filled = pack_columns(keep)
    packed = take(source, columns)

    assert columns.shape == filled.shape == (len(keep), int(keep.sum(1).max()))
    assert packed.shape == (*columns.shape, 2)
    back = torch.zeros_like(source)
    for row in range(len(keep)):
        # No position twice: every column of a row is its own.
        assert len(set(columns[row].tolist())) == columns.shape[1]
        back[row, columns[row][filled[row]]] = packed[row][filled[row]]
    assert torch.equal(back, source * keep.unsqueeze(-1))


@given(keep=keeps)
def test_packed_positions_in_use_stay_in_order(keep: Tensor) -> None:
    columns, filled = pack_columns(keep)
    for row, used, kept in zip(columns, filled, keep, strict=True):
        assert row[used].tolist() == kept.nonzero().flatten().tolist()


@given(keep=keeps, mask_rows=st.booleans(), empty_end=st.integers(0, 2))
def test_a_packed_mask_is_the_rows_of_the_whole_mask(
    keep: Tensor, mask_rows: bool, empty_end: int
) -> None:
    columns, _ = pack_columns(keep)
    batch, tokens = keep.shape
    causal = torch.ones(tokens, tokens + empty_end, dtype=torch.bool).tril()
    whole = causal.expand(batch if mask_rows else 1, 1, -1, -1)
    expected = torch.stack([causal[row] for row in columns]).unsqueeze(1)
    for mask in (whole, None):
        assert torch.equal(take_mask(mask, columns, tokens + empty_end), expected)
