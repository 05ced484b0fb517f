"""Rows of kept tokens, and the mask that their queries have."""

from __future__ import annotations

import torch

from skipgpt.model.execution.run import add_packed
from skipgpt.model.packing import pack_columns, take, take_mask


def test_without_a_mask_a_packed_query_sees_what_it_would_in_its_own_place() -> None:
    keep = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], dtype=torch.bool)
    columns, filled = pack_columns(keep)
    mask = take_mask(None, columns, 5)
    causal = torch.ones(5, 5).tril().bool()
    assert mask.shape == (2, 1, 3, 5)
    for row in range(2):
        for packed, place in enumerate(columns[row].tolist()):
            assert torch.equal(mask[row, 0, packed], causal[place])
            assert filled[row, packed] == (packed < keep[row].sum())


def test_what_is_taken_and_added_lands_where_it_came_from() -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(3, 7, generator=generator) > 0.5
    stream = torch.randn(3, 7, 4, generator=generator)
    columns, filled = pack_columns(keep)
    added = add_packed(stream, take(stream, columns), columns, filled)
    torch.testing.assert_close(added, torch.where(keep[..., None], 2 * stream, stream))
