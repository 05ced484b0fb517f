import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from skipgpt.analysis.statistics import entropy_bits, pearson, sliding_mean, spearman

numbers = some.lists(
    some.tuples(some.integers(-50, 50), some.integers(-50, 50)), min_size=2, max_size=30
)


@given(numbers)
def test_pearson_is_the_correlation_coefficient(pairs: list[tuple[int, int]]) -> None:
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    if x.std() == 0 or y.std() == 0:
        assert math.isnan(pearson(x, y))
    else:
        assert pearson(x, y) == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item())


@given(numbers)
def test_spearman_does_not_see_a_rising_change_of_scale(pairs: list[tuple[int, int]]) -> None:
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    assert spearman(x, y) == pytest.approx(spearman(x, (y / 10).exp()), nan_ok=True)


def test_equal_values_share_their_rank() -> None:
    x, y = torch.tensor([1.0, 1, 2, 3]), torch.tensor([1.5, 1.5, 3, 4])
    assert spearman(x, y) == pytest.approx(1)
    assert spearman(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 10, 5])) == pytest.approx(0.5)


def test_what_is_no_number_is_left_out() -> None:
    x = torch.tensor([math.nan, 1, 2, 3])
    y = torch.tensor([100.0, 2, 4, 6])
    assert pearson(x, y) == spearman(x, y) == pytest.approx(1)
    assert math.isnan(pearson(x[:2], y[:2]))


@given(some.lists(some.integers(-9, 9), min_size=1, max_size=20), some.integers(1, 25))
def test_the_sliding_mean_is_a_mean_of_neighbours(values: list[int], width: int) -> None:
    width = min(width, len(values))
    expected = [sum(values[n : n + width]) / width for n in range(len(values) - width + 1)]
    found = sliding_mean(torch.tensor(values, dtype=torch.float32), width)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_entropy_is_a_bit_at_one_half_and_nothing_at_the_ends() -> None:
    assert entropy_bits(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, 1, 0])
    assert entropy_bits(torch.tensor([0.25])).item() == pytest.approx(0.811278, abs=1e-6)
