"""The fit of a stand-in, against least squares that are worked out in another way."""

import math

import pytest
import torch
from torch import Tensor

from skipgpt.routing.router import divided_by_rms
from skipgpt.routing.stand_in import Moments, StandIn, fit

WIDE, TOKENS = 6, 200
# Weights are float32; what they predict is of size 1 to 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def pairs(noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Streams [B, T, D] and what a module adds to them: affine but for noise, with a mean."""
    entering = torch.randn(4, TOKENS // 4, WIDE) * 3 + 1
    # The directions count unequally, so that the best few are well defined.
    weight = torch.randn(WIDE, WIDE) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    update = divided_by_rms(entering) @ weight + torch.randn(WIDE)
    return entering, update + noise * torch.randn_like(update)


def fitted(entering: Tensor, update: Tensor, rank: int, ridge: float = 0.0) -> StandIn:
    moments, stand_in = Moments(WIDE), StandIn(WIDE, rank)
    moments.add(entering, update)
    fit(stand_in, moments, ridge)
    return stand_in


def squared_error(predicted: Tensor, update: Tensor) -> float:
    return (predicted - update).double().square().mean().item()


def with_ones(entering: Tensor) -> tuple[Tensor, Tensor]:
    """What a stand-in reads, flat, and the same with a column for the bias."""
    read = divided_by_rms(entering).flatten(0, 1).double()
    return read, torch.cat([read, torch.ones(len(read), 1)], dim=1)


def test_a_fit_of_full_rank_is_the_plain_least_squares_solution() -> None:
    entering, update = pairs()
    _, columns = with_ones(entering)
    solution = torch.linalg.lstsq(columns, update.flatten(0, 1).double()).solution
    expected = (columns @ solution).float().view_as(update)
    torch.testing.assert_close(fitted(entering, update, WIDE)(entering), expected, **CLOSE)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_fit_of_lower_rank_is_the_best_of_its_rank(rank: int) -> None:
    entering, update = pairs()
    _, columns = with_ones(entering)
    target = update.flatten(0, 1).double()
    plain = columns @ torch.linalg.lstsq(columns, target).solution
    # What is left of the plain solution's centred predictions when all but the largest singular
    # values are dropped: nothing of this rank is nearer (Eckart and Young).
    left, values, right = torch.linalg.svd(plain - plain.mean(0), full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank] + plain.mean(0)

    stand_in = fitted(entering, update, rank)
    assert stand_in.down.weight.shape == (rank, WIDE)
    torch.testing.assert_close(stand_in(entering), best.float().view_as(update), **CLOSE)
    least = squared_error(best, target)
    assert squared_error(stand_in(entering).flatten(0, 1), target) == pytest.approx(least, rel=1e-5)
    for _ in range(20):  # no small change makes it better
        with torch.no_grad():
            moved = fitted(entering, update, rank)
            for parameter in moved.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        assert squared_error(moved(entering).flatten(0, 1), target) > least


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_ridge_is_least_squares_on_further_rows(ridge: float) -> None:
    entering, update = pairs()
    read, _ = with_ones(entering)
    target = update.flatten(0, 1).double()
    centred = read - read.mean(0)
    damping = ridge * centred.square().mean() * len(read)
    rows = torch.cat([centred, damping.sqrt() * torch.eye(WIDE, dtype=read.dtype)])
    goals = torch.cat([target - target.mean(0), torch.zeros(WIDE, WIDE, dtype=read.dtype)])
    solution = torch.linalg.lstsq(rows, goals).solution
    expected = (centred @ solution + target.mean(0)).float().view_as(update)
    stand_in = fitted(entering, update, WIDE, ridge)
    torch.testing.assert_close(stand_in(entering), expected, **CLOSE)


def test_what_a_module_adds_by_a_map_of_low_rank_is_found_exactly() -> None:
    entering, _ = pairs()
    weight = torch.randn(WIDE, 2) @ torch.randn(2, WIDE)
    update = divided_by_rms(entering) @ weight + torch.arange(float(WIDE))
    torch.testing.assert_close(fitted(entering, update, 2)(entering), update, rtol=0, atol=1e-4)


def test_a_module_that_adds_a_constant_is_replaced_by_the_bias() -> None:
    entering, constant = torch.randn(2, 50, WIDE), torch.randn(WIDE)
    stand_in = fitted(entering, constant.expand(2, 50, WIDE), rank=1, ridge=1e-3)
    torch.testing.assert_close(stand_in(torch.randn(3, WIDE)), constant.expand(3, -1), **CLOSE)


@pytest.mark.parametrize("entering", [torch.zeros(2, 50, WIDE), torch.ones(2, 50, WIDE)])
def test_inputs_that_are_all_alike_leave_nothing_but_the_bias_to_fit(entering: Tensor) -> None:
    update = torch.randn(2, 50, WIDE)
    expected = update.flatten(0, 1).mean(0).expand(2, 50, -1)
    torch.testing.assert_close(fitted(entering, update, 2, 1e-3)(entering), expected, **CLOSE)


def test_text_may_be_counted_in_parts() -> None:
    entering, update = pairs()
    moments = Moments(WIDE)
    for part in range(len(entering)):
        moments.add(entering[part : part + 1], update[part : part + 1])
    assert moments.count == math.prod(entering.shape[:2])
    in_parts = StandIn(WIDE, WIDE)
    fit(in_parts, moments, 0.0)
    whole = fitted(entering, update, WIDE)
    torch.testing.assert_close(in_parts(entering), whole(entering), **CLOSE)


def test_a_direction_that_no_token_has_does_not_break_the_fit() -> None:
    entering = torch.randn(2, 50, WIDE) * (torch.arange(WIDE) > 1)
    update = divided_by_rms(entering) @ torch.randn(WIDE, WIDE)
    stand_in = fitted(entering, update, WIDE, ridge=1e-3)
    assert all(parameter.isfinite().all() for parameter in stand_in.parameters())
    # The ridge of 1e-3 shrinks predictions of size 3 by about as much.
    torch.testing.assert_close(stand_in(entering), update, rtol=0, atol=3e-2)
