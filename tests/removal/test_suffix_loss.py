"""Losses of a search are those of whole forwards, for less than whole forwards."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch

import cases
from bases import DEEP, deep
from cases import every_layout
from removals import static_loss
from runs import rows
from skipgpt.model.surgery import routed_layers
from skipgpt.removal import announced as announcing
from skipgpt.removal.announced import announced
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
    model, text = deep(), rows(4)
    loss = SuffixLoss(model, text)
    first = [Site(2, "mlp")]
    for layer in range(DEEP):
        loss([*first, Site(layer, "attn")])
    # The first starts at the embeddings; each further one runs the layer in front of it, too.
    assert loss.layers_run == 6 + 6 + 5 + 4 + 3 + 2
    before = loss.layers_run
    for layer in range(DEEP):
        loss([*first, Site(layer, "mlp")])
    assert loss.layers_run - before == 6 + 5 + 4 + 3 + 2 + 1


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the search reads, in seconds."""
    now = [0.0]
    monkeypatch.setattr(announcing.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.01, []),
        (1.0, ["sleb: about 64 seconds (16 trials)"]),
        (10.0, ["sleb: about 11 minutes (16 trials)"]),
        (1000.0, ["sleb: about 17.8 hours (16 trials)"]),
    ],
)
def test_how_long_a_search_takes_is_said_once_its_first_trials_are_timed(
    seconds: float,
    said: list[str],
    clock: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = SuffixLoss(deep(), rows(1))

    def slow(removed: Any) -> float:
        clock[0] += seconds * 6 + 100 * (loss.layers_run == 0)  # the first one warms up
        loss.layers_run += 5
        return 0.0

    monkeypatch.setattr(SuffixLoss, "__call__", lambda _, removed: slow(removed))
    timed = announced(loss, "sleb", 16)
    with caplog.at_level(logging.INFO, "skipgpt"):
        for n in range(16):
            timed([])
            assert len(caplog.messages) == (n > 2) * len(said)
    assert caplog.messages == said


def test_losses_are_announced_unchanged() -> None:
    model, text = deep(), rows(4)
    timed = announced(SuffixLoss(model, text), "a search", 9, at_least=True)
    for layer in range(6):
        removed = [Site(layer, "mlp")]
        assert timed(removed) == pytest.approx(static_loss(model, text, removed), abs=1e-6)
    assert torch.is_grad_enabled()
