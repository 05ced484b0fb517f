import pytest

from skipgpt.errors import ConfigError
from skipgpt.training.loop.sampler import (
    ROWS,
    RunDataset,
    StepBatchSampler,
    StepPartition,
    share_of_step,
)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "rows", "parts"),
    [(16, 1, 1, 16, 1), (16, 1, 8, 2, 1), (4, 4, 2, 4, 2), (4, 4, 8, 2, 1), (6, 1, 3, 2, 1),
     (4, 3, 2, 3, 2), (1, 4, 1, 1, 4)],
)  # fmt: skip
def test_a_step_is_cut_into_equal_forwards_that_fit(
    batch_size: int, accumulation: int, processes: int, rows: int, parts: int
) -> None:
    share = share_of_step(batch_size, accumulation, processes)
    assert share == StepPartition(rows, parts, processes)
    assert share.rows * share.parts * share.processes == batch_size * accumulation


def test_rows_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"6 rows .* for 4 processes"):
        share_of_step(3, 2, 4)


@pytest.mark.parametrize(
    "share",
    [
        StepPartition(8, 1, 1),
        StepPartition(2, 4, 1),
        StepPartition(2, 2, 2),
        StepPartition(1, 2, 4),
    ],
)
def test_every_step_has_the_same_rows_however_it_is_cut(share: StepPartition) -> None:
    own = [list(StepBatchSampler(share, 3, rank)) for rank in range(share.processes)]
    for step in range(3):
        parts = slice(step * share.parts, (step + 1) * share.parts)
        places = sorted(place for each in own for part in each[parts] for place in part)
        assert places == list(range(8 * step, 8 * step + 8))


def test_every_epoch_shows_each_row_once_in_an_order_of_its_own() -> None:
    rows = [{"n": n} for n in range(10)]
    run = RunDataset(rows, 30, seed=4)
    shown = [run[place]["n"] for place in range(30)]
    epochs = [shown[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert run[7][ROWS] == 7
    assert [RunDataset(rows, 30, seed=4)[place]["n"] for place in range(30)] == shown
    assert [RunDataset(rows, 30, seed=5)[place]["n"] for place in range(30)] != shown
