"""Losses of a search are those of whole forwards, for less than whole forwards."""

from __future__ import annotations

import random

import pytest

import cases
from bases import DEEP, deep
from cases import every_layout
from removals import static_loss
from runs import rows
from skipgpt.model.surgery import routed_layers
from skipgpt.removal.search import one_by_one
from skipgpt.removal.suffix_loss import SuffixLoss
from skipgpt.removal.units import units_of
from skipgpt.routing.decision import Site

EACH = 16 * 12 * 32 * 4
"""Bytes of the streams that enter one layer, of 12 rows of 16 tokens and a width of 32."""


@every_layout
def test_every_loss_equals_that_of_a_whole_forward(family: str) -> None:
    model, draw = cases.routed(family, stand_in=2), random.Random(0)
    text, sites = rows(3, 11), cases.SITES
    loss = SuffixLoss(model, text, batch_size=2)
    for _ in range(3):
        some = draw.sample(sites, draw.randrange(4))
        for site in draw.sample(sites, 3):
            removed = [*some, site]
            expected = static_loss(model, text, removed, batch_size=2)
            assert loss(removed) == pytest.approx(expected, abs=1e-6)
    assert loss([]) == pytest.approx(static_loss(model, text, [], batch_size=2), abs=1e-6)


@pytest.mark.parametrize("most_bytes", [2**31, 4 * EACH, 2 * EACH, EACH, 1])
def test_what_is_kept_is_bounded_and_changes_no_loss(most_bytes: int) -> None:
    model, text, kept = deep(), rows(12, 16), []
    loss = SuffixLoss(model, text, most_bytes=most_bytes)
    assert text.numel() * model.config.hidden_size * 4 == EACH

    def checked(removed: list[Site]) -> float:
        found = loss(removed)
        assert found == pytest.approx(static_loss(model, text, removed), abs=1e-6)
        streams = [stream for batch in loss._kept for _, stream in batch.values()]
        kept.append(sum(stream.numel() * stream.element_size() for stream in streams))
        return found

    one_by_one(checked, units_of(model, "modules"), 3)
    assert max(kept) <= most_bytes


def test_a_round_of_trials_runs_half_of_the_layers() -> None:
    model, text, ran = deep(), rows(4), []
    for layer in routed_layers(model):
        layer.self_attn.k_proj.register_forward_hook(lambda *_, n=layer.index: ran.append(n))
    loss = SuffixLoss(model, text)
    first = [Site(2, "mlp")]

    def counted(sites: list[Site]) -> list[int]:
        ran.clear()
        loss(sites)
        return [*ran]

    # The first starts at the embeddings; each further one runs the layer in front of it, too.
    starts = (0, 0, 1, 2, 3, 4)
    for layer, start in enumerate(starts):
        assert counted([*first, Site(layer, "attn")]) == [*range(start, DEEP)]
    for layer in range(DEEP):
        assert counted([*first, Site(layer, "mlp")]) == [*range(layer, DEEP)]


def test_the_model_is_as_it_was_even_after_a_failure() -> None:
    model, text = deep(), rows(4)
    loss = SuffixLoss(model, text)
    loss([Site(3, "attn")])
    own = lambda *_, **__: None  # noqa: E731
    routed_layers(model)[0].forward = own  # as an offloaded layer has one
    model.lm_head.forward = None
    with pytest.raises(TypeError):
        loss([Site(3, "mlp")])
    assert routed_layers(model)[0].forward is own
    for layer in routed_layers(model)[1:]:
        assert "forward" not in vars(layer)
        assert not layer._forward_pre_hooks
