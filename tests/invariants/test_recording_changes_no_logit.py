import pytest
import torch

from cases import LEFT_PADDED, Inputs, every_layout, routed
from skipgpt.model.state import execution, record_routing, routing_state


@every_layout
@torch.no_grad()
def test_recording_changes_no_logit(family: str) -> None:
    model = routed(family)
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            expected = model(**LEFT_PADDED.given).logits
            with record_routing(model) as trace:
                recorded = model(**LEFT_PADDED.given).logits
        assert torch.equal(recorded, expected)
        assert len(trace.steps) == 1


@torch.no_grad()
def test_nothing_is_recorded_outside_the_block() -> None:
    model, inputs = routed(), Inputs((0,), padded=False)
    with record_routing(model) as trace:
        model(inputs.ids)
    model(inputs.ids)
    assert len(trace.steps) == 1
    assert routing_state(model).recorders == ()


@torch.no_grad()
def test_blocks_nest_and_restore_what_was_in_force_even_after_an_error() -> None:
    model, inputs = routed(), Inputs((0,), padded=False)
    with record_routing(model) as outer:
        with record_routing(model) as inner:
            model(inputs.ids)
        with pytest.raises(IndexError), record_routing(model):
            model(torch.full((1, 1), 999))  # no such token
        model(inputs.ids)
    assert (len(outer.steps), len(inner.steps)) == (2, 1)
    assert routing_state(model).recorders == ()


@torch.no_grad()
def test_every_forward_of_a_generation_is_one_step() -> None:
    model, inputs = routed(), LEFT_PADDED
    with record_routing(model) as trace:
        model.generate(**inputs.prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    shapes = [tuple(step.keeps()[0].shape) for step in trace.steps]
    assert shapes == [(3, 11), (3, 1), (3, 1), (3, 1)]
    tokens = trace.counts().tokens
    assert tokens == (8 + 11 + 5) + 3 * 3


@torch.no_grad()
def test_dense_execution_decides_nothing_and_skips_nothing() -> None:
    model, inputs = routed(), Inputs((0,), padded=False)
    with execution(model, "dense"), record_routing(model) as trace:
        model(inputs.ids)
    assert trace.steps == []
    assert trace.sparsity() == 0
