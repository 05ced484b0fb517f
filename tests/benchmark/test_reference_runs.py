"""What rivals are: a smaller model on the same weights, and dense, compiled."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.reference_runs import Static, compiled, static_depth
from skipgpt.benchmark.shapes import SHAPES
from skipgpt.benchmark.subject import Subject, subject_of_shape
from skipgpt.benchmark.timing.candidate import NotApplicable
from skipgpt.benchmark.timing.clock import Task
from skipgpt.cost import Forward, work
from skipgpt.errors import UnsupportedModelError
from skipgpt.model.state import use_rule
from skipgpt.model.surgery import routed_layers, routers
from skipgpt.routing.decision import Forced, Site

LAYERS = 6
FORWARD = Forward(tokens=32)


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setitem(SHAPES, "llama-deep", SHAPES["llama-tiny"] | {"num_hidden_layers": LAYERS})
    return subject_of_shape("llama-deep")


def static(subject: Subject, keep: float) -> Static:
    run = work(subject.routed, FORWARD, dict.fromkeys(routers(subject.routed), keep))
    return static_depth(subject, FORWARD, run)


def removed(subject: Subject, rival: Static) -> list[int]:
    """The layers whose weights the smaller model does not have."""
    left = {p.data_ptr() for p in rival.model.parameters()}
    layers = subject.dense.model.layers
    return [n for n in range(LAYERS) if layers[n].mlp.up_proj.weight.data_ptr() not in left]


@torch.no_grad()
def test_static_is_the_model_that_skips_the_same_layers(subject: Subject) -> None:
    rival = static(subject, 0.5)
    assert not routed_layers(rival.model)
    gone = removed(subject, rival)
    assert gone
    ids = subject.prompts(2, 16)
    with use_rule(
        subject.routed, Forced.without([Site(n, m) for n in gone for m in ("attn", "mlp")])
    ):
        expected = subject.routed(ids).logits
    # The same sums; only routers come between.
    torch.testing.assert_close(rival.model(ids).logits, expected, rtol=0.0, atol=1e-6)
    assert rival.model.config._attn_implementation == subject.dense.config._attn_implementation


def test_static_holds_no_weight_of_its_own(subject: Subject) -> None:
    held = {p.data_ptr() for p in subject.dense.parameters()}
    assert all(p.data_ptr() in held for p in static(subject, 0.5).model.parameters())


@pytest.mark.parametrize("keep", [1.0, 0.8, 0.5, 0.2])
def test_static_comes_as_close_to_the_flops_as_whole_layers_can(
    subject: Subject, keep: float
) -> None:
    rival, model = static(subject, keep), subject.routed
    wanted = work(model, FORWARD, dict.fromkeys(routers(model), keep)).flops
    dense, got = work(model, FORWARD).flops, work(rival.counted, FORWARD).flops
    layer = (dense - work(model, FORWARD).head) / LAYERS
    assert abs(got - wanted) <= layer / 2
    gone = len(removed(subject, rival))
    assert rival.sparsity == pytest.approx(gone / LAYERS)
    assert f"{LAYERS - gone} of the {LAYERS} layers" in rival.note
    assert f"{got / dense:.1%}" in rival.note
    assert f"{wanted / dense:.1%}" in rival.note


def test_what_cannot_be_made_smaller_is_left_out(subject: Subject) -> None:
    refusal = UnsupportedModelError("removing layers", got="a strange config")
    with (
        mock.patch("skipgpt.benchmark.reference_runs.smaller_model", side_effect=refusal),
        pytest.raises(NotApplicable, match="a strange config"),
    ):
        static(subject, 0.5)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("no working C++ compiler\nand more", "RuntimeError: no working C++ compiler"),
        ("", "RuntimeError"),
        ("\n", "RuntimeError"),
    ],
)
def test_what_cannot_be_compiled_is_left_out_and_says_why(message: str, said: str) -> None:
    def run(_: object) -> None:
        raise RuntimeError(message)

    with pytest.raises(NotApplicable) as left_out:
        compiled(lambda _: Task(run), mock.Mock())
    assert str(left_out.value) == f"torch.compile failed on this machine ({said})"


@pytest.mark.parametrize("phase", ["prefill", "decode", "generate", "lora_step"])
def test_rivals_stand_beside_sparse(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether there is a compiler is the machine's affair.
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: seen.append(model))
    grid = Grid(
        phases=(phase,),
        prompt_tokens=(8,),
        decode_tokens=2,
        sparsities=(0.5,),
        executions=("sparse", "gated", "static", "compiled"),
        repeats=1,
    )
    result = bench(subject_of_shape("llama-tiny"), grid)
    assert [row.execution for row in result.rows] == list(grid.executions)
    sparse, gated, small, whole = result.rows
    assert len(seen) == 1
    assert not routed_layers(seen[0])
    assert sparse.flops_share < 1
    assert gated.flops_share == 1
    assert (sparse.sparsity, sparse.ideal_speedup) == (gated.sparsity, gated.ideal_speedup)
    assert small.note
    assert (whole.sparsity, whole.flops_share, whole.ideal_speedup) == (0, 1, 1)
    if phase in ("prefill", "lora_step"):
        assert small.ideal_speedup == pytest.approx(1 / small.flops_share)
        assert sparse.ideal_speedup == pytest.approx(1 / sparse.flops_share)


def test_static_of_generate_is_as_small_as_that_of_its_prompt() -> None:
    grid = Grid(
        phases=("prefill", "generate"),
        prompt_tokens=(8,),
        decode_tokens=5,
        sparsities=(0.5,),
        executions=("static",),
        repeats=1,
    )
    of_prompt, of_both = bench(subject_of_shape("llama-tiny"), grid).rows
    assert of_prompt.note == of_both.note
    assert of_prompt.sparsity == of_both.sparsity


@pytest.mark.parametrize("phase", ["prefill", "decode", "generate", "lora_step"])
def test_the_rest_is_timed_without_who_is_left_out(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda model: setattr(model, "forward", model.no_compiler)
    )
    monkeypatch.setattr(
        torch.nn.Module, "no_compiler", mock.Mock(side_effect=RuntimeError("none")), raising=False
    )
    grid = Grid(
        phases=(phase,),
        prompt_tokens=(8,),
        decode_tokens=2,
        sparsities=(0.0, 0.5),
        executions=("compiled", "sparse"),
        repeats=1,
    )
    result = bench(subject_of_shape("llama-tiny"), grid)
    assert [row.execution for row in result.rows] == ["sparse", "sparse"]
    reason = "torch.compile failed on this machine (RuntimeError: none)"
    assert result.left_out == (f"compiled is left out: {reason}.",)
