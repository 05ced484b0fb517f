import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import SITES, Inputs, every_layout, routed
from skipgpt.model.state import execution, use_rule
from skipgpt.routing.decision import Forced, Site
from tiny import examples


@dataclass(frozen=True)
class Trial:
    """A batch, where its rows are cut into forwards, and how much each site keeps of it."""

    inputs: Inputs
    ends: tuple[int, ...]
    shares: tuple[float, ...]
    seed: int

    def routes(self) -> dict[Site, Tensor]:
        """Which tokens keep each site, [B, T] over all columns, padding included."""
        made = torch.Generator().manual_seed(self.seed)
        shape = self.inputs.ids.shape
        return {
            site: torch.rand(shape, generator=made) < share
            for site, share in zip(SITES, self.shares, strict=True)
        }


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    rows, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    padded = draw(st.booleans())
    pads = st.integers(0, tokens - 1 if padded else 0)
    inputs = Inputs(tuple(draw(pads) for _ in range(rows)), padded, tokens)
    # Cut anywhere, then some columns of one token each at the end, as decoding goes.
    decoded = draw(st.integers(0, min(6, tokens - 1)))
    cuts = draw(st.sets(st.integers(1, max(1, tokens - decoded)), max_size=3))
    ends = cuts | set(range(tokens - decoded, tokens + 1))
    shares = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
    return Trial(
        inputs,
        tuple(sorted(ends - {0})),
        tuple(draw(shares) for _ in SITES),
        draw(st.integers(0, 10**6)),
    )


@functools.cache
def _model(family: str, kv: str) -> nn.Module:
    """One for all trials, which leave it as it was."""
    return routed(family, kv=kv)


@pytest.mark.parametrize("kv", ["dense", "skip"])
@every_layout
@examples(short=10, long=300)
@given(trial=trials())
@torch.no_grad()
def test_sparse_in_any_chunks_equals_gated_at_once(family: str, kv: str, trial: Trial) -> None:
    model, inputs, routes = _model(family, kv), trial.inputs, trial.routes()
    with use_rule(model, Forced(routes)), execution(model, "gated"):
        expected = model(**inputs.given, use_cache=False).logits
    actual = _in_chunks(model, trial, routes)
    # Logits reach 10, a rounding of which is 1e-6, and some twenty of them add up; a wrong token
    # shows from 1e-2 upwards.
    torch.testing.assert_close(actual[inputs.real], expected[inputs.real], rtol=0, atol=2e-5)


def _in_chunks(model: nn.Module, trial: Trial, routes: dict[Site, Tensor]) -> Tensor:
    """Sparse logits [B, T, V], the cache handed on from each forward to the next."""
    logits, cache = [], None
    for start, end in itertools.pairwise((0, *trial.ends)):
        here = Forced({site: keep[:, start:end] for site, keep in routes.items()})
        with use_rule(model, here):
            made = model(**trial.inputs.chunk(start, end), past_key_values=cache, use_cache=True)
        logits.append(made.logits)
        cache = made.past_key_values
    return torch.cat(logits, dim=1)
