import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import huber_loss

from skipgpt.routing.budget import budget_loss, linear_between, saved_share

shares = st.floats(0.0, 1.0, width=32)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.randoms(use_true_random=False))
def test_equal_shares_count_real_tokens_of_all_modules_alike(
    modules: int, rows: int, tokens: int, dice: object
) -> None:
    def flags() -> torch.Tensor:
        return torch.tensor([[dice.random() < 0.5 for _ in range(tokens)] for _ in range(rows)])

    gates, real = [flags() for _ in range(modules)], flags()
    assume(real.any())
    kept = sum(
        bool(gate[b, t]) for gate in gates for b in range(rows) for t in range(tokens) if real[b, t]
    )
    expected = kept / (int(real.sum()) * modules)
    weights = [1 / modules] * modules
    # A sum of up to five shares in float32.
    assert saved_share(gates, weights, real).item() == pytest.approx(1 - expected, abs=3e-7)
    everything = sum(int(gate.sum()) for gate in gates) / (rows * tokens * modules)
    assert saved_share(gates, weights).item() == pytest.approx(1 - everything, abs=3e-7)


def test_a_share_spreads_its_gradient_over_real_tokens() -> None:
    gates = [torch.rand(2, 3, requires_grad=True) for _ in range(4)]
    real = torch.tensor([[True, True, False], [False, True, True]])
    grads = torch.autograd.grad(saved_share(gates, [0.25] * 4, real), gates)
    for grad in grads:
        torch.testing.assert_close(grad, -real.float() / (4 * 4))


@given(sparsity=shares, target=shares)
def test_the_budget_is_the_distance_to_the_target(sparsity: float, target: float) -> None:
    value = torch.tensor(sparsity, requires_grad=True)
    loss = budget_loss(value, target)
    assert loss.item() == pytest.approx(abs(target - sparsity), abs=1e-7)
    assume(abs(sparsity - target) > 1e-6)
    (gradient,) = torch.autograd.grad(loss, value)
    assert gradient.item() == (1.0 if sparsity > target else -1.0)


@given(
    parts=st.lists(st.tuples(shares, st.integers(1, 100)), min_size=1, max_size=6), target=shares
)
def test_the_parts_of_a_batch_add_up_to_the_whole_in_value_and_gradient(
    parts: list[tuple[float, int]], target: float
) -> None:
    sparsities = torch.tensor([s for s, _ in parts], dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([n for _, n in parts], dtype=torch.float64)
    weights = sizes / sizes.sum()
    whole = (sparsities * weights).sum()
    # Exactly on the target the distance has no direction.
    assume(abs(whole.item() - target) > 1e-9)

    expected = (whole - target).abs()
    terms = [
        weight * budget_loss(part, target, whole.detach())
        for part, weight in zip(sparsities, weights, strict=True)
    ]
    actual = torch.stack(terms).sum()

    # Float64 rounds at 2e-16; up to six terms.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, sparsities)[0] for value in (actual, expected)),
        rtol=0,
        atol=1e-14,
    )


@given(
    parts=st.lists(shares, min_size=1, max_size=4),
    target=shares,
    softness=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_parts_add_up_to_the_whole_however_soft(
    parts: list[float], target: float, softness: float
) -> None:
    leaf = torch.tensor(parts, requires_grad=True)
    mean = leaf.mean()
    whole = budget_loss(mean, target, softness=softness)
    (expected,) = torch.autograd.grad(whole, leaf, retain_graph=True)
    together = sum(budget_loss(part, target, mean, softness) for part in leaf) / len(parts)
    (found,) = torch.autograd.grad(together, leaf)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(together, whole)


@given(sparsity=shares, target=shares, softness=st.floats(0.01, 0.5))
def test_a_soft_budget_is_hubers_loss(sparsity: float, target: float, softness: float) -> None:
    leaf = torch.tensor(sparsity, requires_grad=True)
    ours = budget_loss(leaf, target, softness=softness)
    theirs = huber_loss(leaf, torch.tensor(target), delta=softness) / softness
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(each, leaf)[0] for each in (ours, theirs)), rtol=1e-4, atol=1e-5
    )


def test_without_the_whole_the_parts_would_pull_against_each_other() -> None:
    """Why `whole` exists: 0 and 1 around a target of a half are no distance from it together."""
    parts = torch.tensor([0.0, 0.9])
    alone = sum(0.5 * budget_loss(part, 0.5).item() for part in parts)
    together = sum(0.5 * budget_loss(part, 0.5, parts.mean()).item() for part in parts)
    assert alone == pytest.approx(0.45)
    assert together == pytest.approx(0.05)


@given(start=st.floats(-10, 10), end=st.floats(-10, 10), progress=st.floats(-1, 2))
def test_a_schedule_stays_between_its_ends_and_starts_and_stops_there(
    start: float, end: float, progress: float
) -> None:
    value = linear_between(start, end, progress)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    if progress <= 0:
        assert value == start
    if progress >= 1:
        assert value == pytest.approx(end, abs=1e-9)


def test_a_schedule_is_linear_between() -> None:
    assert [linear_between(5.0, 1.0, p) for p in (0, 0.25, 0.5, 1)] == [5.0, 4.0, 3.0, 1.0]
