import torch

from skipgpt.routing.decision import GumbelSample, Site
from skipgpt.routing.noise import RowNoise

SITE = Site(3, "attn")


def _noise(*places: int, seed: int = 0) -> RowNoise:
    return RowNoise(seed, torch.tensor(places))


def test_a_row_draws_the_same_numbers_beside_whatever_rows_it_is() -> None:
    together = _noise(5, 6, 7, 8).uniform((4, 9), "3.attn")
    apart = [_noise(place).uniform((1, 9), "3.attn") for place in (5, 6, 7, 8)]
    assert torch.equal(together, torch.cat(apart))
    assert torch.equal(together[:, :4], _noise(5, 6, 7, 8).uniform((4, 4), "3.attn"))


def test_seed_row_site_and_token_each_change_every_number() -> None:
    first = _noise(5, 6).uniform((2, 64), "3.attn")
    for other in (
        _noise(5, 6, seed=1).uniform((2, 64), "3.attn"),
        _noise(7, 8).uniform((2, 64), "3.attn"),
        _noise(5, 6).uniform((2, 64), "3.mlp"),
        first.roll(1, 0),
        first.roll(1, 1),
    ):
        assert not (other == first).any()


def test_numbers_are_uniform_and_independent() -> None:
    drawn = RowNoise(3, torch.arange(400)).uniform((400, 500), "1.mlp")
    assert drawn.min() > 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, 20, 0, 1)
    # Of 200,000 numbers 10,000 fall into each bin, with a standard deviation of 97.
    assert (counts - 10_000).abs().max() < 5 * 97
    beside = RowNoise(3, torch.arange(400)).uniform((400, 500), "1.attn")
    pairs = [(drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1]), (drawn, beside)]
    for one, other in pairs:
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert correlation.abs() < 5 / 200_000**0.5


def test_gumbel_samples_take_their_numbers_from_there() -> None:
    margin = torch.zeros(2, 16)
    one, again = (GumbelSample().keyed(_noise(5, 6))(margin, SITE).keep for _ in range(2))
    swapped = GumbelSample().keyed(_noise(6, 5))(margin, SITE).keep
    assert torch.equal(one, again)
    assert torch.equal(one, swapped.flip(0))
    assert one.any()
    assert not one.all()
