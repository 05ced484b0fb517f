"""Where kept tokens are, against `nonzero`, which has to wait for them."""

from __future__ import annotations

import pytest
import torch

from skipgpt.kernels.compaction import kept_queries, kept_rows


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (4, 9)])
def test_rows_are_those_that_nonzero_finds(shape: tuple[int, int], share: float) -> None:
    keep = torch.rand(shape) < share
    found = kept_rows(keep)
    wanted = keep.flatten().nonzero().squeeze(-1)
    assert found.rows.dtype == found.count.dtype == torch.int32
    assert found.rows.shape == (keep.numel(),)
    assert found.count.tolist() == [len(wanted)]
    assert found.rows[: len(wanted)].tolist() == wanted.tolist()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_each_sequence_is_packed_to_the_left(share: float) -> None:
    keep = torch.rand(3, 8) < share
    found = kept_queries(keep)
    packed = [row.nonzero().squeeze(-1).tolist() for row in keep]
    assert found.counts.tolist() == [len(places) for places in packed]
    for columns, places in zip(found.columns.tolist(), packed, strict=True):
        assert columns[: len(places)] == places
        assert not any(columns[len(places) :])
    rows = keep.flatten().nonzero().squeeze(-1)
    assert found.rows[: len(rows)].tolist() == rows.tolist()
    assert found.count.tolist() == [len(rows)]


def test_an_expanded_flag_is_packed_like_any_other() -> None:
    found = kept_queries(torch.tensor([[True]]).expand(2, 3))
    assert found.columns.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_worked_example_of_the_module() -> None:
    found = kept_queries(torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]).bool())
    assert found.rows[:4].tolist() == [0, 2, 3, 6]
    assert found.columns[:, :3].tolist() == [[0, 2, 3], [2, 0, 0]]
    assert found.counts.tolist() == [3, 1]
