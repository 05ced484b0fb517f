"""Counts of what ran equal those of a full trace, and take no memory per token."""

from __future__ import annotations

import pytest
import torch

from cases import LEFT_PADDED, every_layout, routed
from skipgpt.model.execution import decode
from skipgpt.model.state import count_routing, execution, record_routing, routing_state
from skipgpt.routing.decision import MODULES, Site


def generated(model: torch.nn.Module) -> torch.Tensor:
    return model.generate(**LEFT_PADDED.prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)


@every_layout
@pytest.mark.parametrize("kind", ["gated", "sparse", "auto"])
@torch.no_grad()
def test_counts_of_a_generation_are_those_of_its_trace(family: str, kind: str) -> None:
    model = routed(family)
    with execution(model, kind):
        with record_routing(model) as trace:
            expected = generated(model)
        with count_routing(model) as counts:
            assert torch.equal(generated(model), expected)
    # Added up here once more, without KeepCounts.
    kept = dict.fromkeys(counts.kept(), 0)
    tokens = 0
    for step in trace.steps:
        real = torch.ones_like(step.keeps()[0]) if step.token_mask is None else step.token_mask
        tokens += int(real.sum())
        for layer, decision in step.decisions.items():
            for module in MODULES:
                kept[Site(layer, module)] += int((getattr(decision, module).keep & real).sum())
    assert counts.kept() == kept
    assert counts.tokens == tokens
    assert counts.sparsity() == pytest.approx(1 - sum(kept.values()) / tokens / len(kept))
    assert 0 < counts.sparsity() < 1


@torch.no_grad()
def test_counting_leaves_decoding_on_its_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed()
    decided = []
    decide = decode.decide

    def watched(layer: torch.nn.Module, entering: torch.Tensor) -> object:
        decision = decide(layer, entering)
        if entering.shape[1] == 1:
            decided.append(decision)
        return decision

    monkeypatch.setattr(decode, "decide", watched)
    with count_routing(model):
        generated(model)
    assert len(decided) == 5 * 3  # steps after the prompt, layers
    assert None not in decided


@torch.no_grad()
def test_each_open_recorder_sees_what_those_inside_it_see() -> None:
    model = routed()
    with (
        record_routing(model) as trace,
        count_routing(model) as outer,
        count_routing(model) as inner,
    ):
        generated(model)
    assert len(trace.steps) == 6
    assert trace.counts().kept() == outer.kept() == inner.kept()
    with count_routing(model) as outer, record_routing(model) as middle, record_routing(model):
        generated(model)
    assert outer.kept() == middle.counts().kept() == trace.counts().kept()
    with count_routing(model) as outer, count_routing(model) as inner:  # on the fast path
        generated(model)
    assert outer.kept() == inner.kept() == trace.counts().kept()


@torch.no_grad()
def test_recorders_may_end_in_any_order() -> None:
    model = routed()
    first, second = count_routing(model), count_routing(model)
    first.__enter__()
    counts = second.__enter__()
    first.__exit__(None, None, None)
    with torch.no_grad():
        model(**LEFT_PADDED.given)
    second.__exit__(None, None, None)
    assert counts.keep_ratios()
    assert routing_state(model).recorders == ()


def test_decisions_that_are_kept_for_later_steps_know_nothing_of_their_first_caller() -> None:
    decode._alike.cache_clear()
    with torch.inference_mode(), torch.device("meta"):
        kept = decode._alike(2, True)
    assert kept.keep.device.type == "cpu"
    assert not kept.gate.is_inference()


def test_what_is_held_does_not_grow_with_the_text() -> None:
    model = routed()
    with count_routing(model) as counts:
        model(LEFT_PADDED.ids)
        once = [len(counts._kept), len(counts._tokens)]
        for _ in range(5):
            model(LEFT_PADDED.ids)
    assert [len(counts._kept), len(counts._tokens)] == once
    assert all(torch.as_tensor(each).numel() == 1 for each in counts._kept.values())
    assert routing_state(model).recorders == ()
