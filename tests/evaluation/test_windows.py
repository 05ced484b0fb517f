import pytest
import torch

from skipgpt.errors import DataError
from skipgpt.evaluation.perplexity import perplexity, total_loss
from skipgpt.evaluation.windows import batches, mean_context, rows_of
from tiny import tiny_routed


def test_rows_hold_every_token_but_a_last_one_alone() -> None:
    ids = torch.arange(11)
    assert torch.equal(torch.cat(rows_of(ids, 4)), ids)
    assert [len(row) for row in rows_of(ids, 5)] == [5, 5]  # nothing would predict the last one


@pytest.mark.parametrize(("tokens", "got"), [(0, "0 tokens"), (1, "1 token;")])
def test_less_than_two_tokens_are_nothing_to_measure(tokens: int, got: str) -> None:
    with pytest.raises(DataError, match=got):
        rows_of(torch.arange(tokens), 4)


def test_batches_stack_rows_of_one_length_and_pad_none() -> None:
    rows = rows_of(torch.arange(19), 4)
    assert [tuple(batch.shape) for batch in batches(rows, 3)] == [(3, 4), (1, 4), (1, 3)]
    assert torch.equal(torch.cat([b.flatten() for b in batches(rows, 3)]), torch.arange(19))


def test_rows_of_unlike_length_are_measured_as_if_alone() -> None:
    model, rows = tiny_routed(initializer_range=0.2), rows_of(torch.arange(1, 40), 16)
    result = perplexity(model, rows, batch_size=2)
    alone = [total_loss(model, row[None]) for row in rows]
    assert result.tokens == sum(tokens for _, tokens in alone) == 15 + 15 + 6
    assert result.nll_per_token == pytest.approx(sum(nll for nll, _ in alone) / 36, rel=1e-6)


def test_the_mean_context_counts_each_token_once() -> None:
    rows = [torch.arange(3), torch.arange(1)]
    assert mean_context(rows) == (1 + 2 + 3 + 1) / 4
    assert mean_context(torch.zeros(5, 9)) == 5
