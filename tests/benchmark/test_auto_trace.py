"""What `auto` really ran, and what that costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.result import Row
from skipgpt.benchmark.subject import Subject, subject_of_shape
from skipgpt.benchmark.timing.auto_trace import as_run, traced_as_run
from skipgpt.benchmark.timing.clock import Task
from skipgpt.benchmark.timing.phases import Cell, keep_and_union
from skipgpt.cost import Forward, work
from skipgpt.model.packing_cost import PackingCost
from skipgpt.model.surgery import routed_layers, routers
from skipgpt.model.trace import Step
from skipgpt.routing.decision import Decision, ModuleDecision, RandomRoutes, Site
from skipgpt.system.device_profile import Machine, store_profile

# Products that take for ever, or no time; packing that takes no time, or for ever.
ALWAYS = Machine(flops=1.0, bandwidth=1e30, mlp_packing=1e-30, attn_packing=1e-30)
NEVER = Machine(flops=1e30, bandwidth=1e30, mlp_packing=1e30, attn_packing=1e30)
MLP_ALONE = dataclasses.replace(ALWAYS, attn_packing=1e30)


def on(machine: Machine) -> Subject:
    """A subject on a machine of these figures."""
    store_profile(machine, torch.device("cpu"), torch.float32)
    return subject_of_shape("llama-tiny")


def rows(subject: Subject, phase: str, **changes: object) -> dict[str, Row]:
    """By execution."""
    given = {"prompt_tokens": (16,), "decode_tokens": 3, "sparsities": (0.5,), "repeats": 1}
    kinds = ("auto", "sparse", "gated")
    result = bench(subject, Grid(phases=(phase,), executions=kinds, **(given | changes)))
    return {row.execution: row for row in result.rows}


def shares(steps: list[Step]) -> dict[Site, float]:
    return keep_and_union(steps)[0]


@pytest.mark.parametrize("phase", ["prefill", "lora_step"])
def test_where_packing_pays_auto_spends_what_sparse_does(phase: str) -> None:
    found = rows(on(ALWAYS), phase)
    assert {name: row.packed_share for name, row in found.items()} == {
        "auto": 1.0,
        "sparse": 1.0,
        "gated": 0.0,
    }
    assert found["auto"].flops_share == found["sparse"].flops_share < 0.9


@pytest.mark.parametrize("phase", ["prefill", "lora_step"])
def test_where_packing_does_not_pay_auto_spends_what_dense_does(phase: str) -> None:
    found = rows(on(NEVER), phase)
    assert (found["auto"].packed_share, found["sparse"].packed_share) == (0.0, 1.0)
    # Routers come on top.
    assert 1 < found["auto"].flops_share < 1.02
    assert found["sparse"].flops_share < 0.9
    # What skipping could give at best is the same.
    assert found["auto"].ideal_speedup == found["sparse"].ideal_speedup
    assert found["auto"].sparsity == found["sparse"].sparsity > 0.2


@torch.inference_mode()
def test_each_module_is_told_apart() -> None:
    subject = on(MLP_ALONE)
    model, cell = (
        subject.executing("auto", RandomRoutes(0.5)),
        Cell("prefill", subject.ids[None, :16], 0),
    )
    trace, run = traced_as_run(model, cell.task(model))
    decided, ran = shares(trace.steps), shares(run.steps)
    assert run.packed_share == 0.5
    assert ran == {s: 1.0 if s.module == "attn" else share for s, share in decided.items()}
    assert max(decided.values()) < 1
    row = rows(subject, "prefill")["auto"]
    spent = work(subject.routed, Forward(1, 16), ran).flops
    assert row.flops_share == pytest.approx(spent / work(subject.routed, Forward(1, 16)).flops)
    assert row.packed_share == 0.5


@torch.inference_mode()
def test_one_token_of_each_sequence_runs_what_some_sequence_keeps() -> None:
    subject = on(NEVER)
    model = subject.executing("auto", RandomRoutes(0.5))
    cell = Cell("decode", subject.prompts(3, 8), 6)
    trace, run = traced_as_run(model, cell.task(model))
    decided, union = keep_and_union(trace.steps)
    assert len(trace.steps) == 6
    assert shares(run.steps) == union != decided
    assert run.packed_share == 0.0


@torch.inference_mode()
def test_one_token_alone_runs_what_it_keeps() -> None:
    subject = on(NEVER)
    model = subject.executing("auto", RandomRoutes(0.5))
    trace, run = traced_as_run(model, Cell("decode", subject.prompts(1, 8), 6).task(model))
    assert shares(run.steps) == shares(trace.steps)
    assert run.packed_share == 1.0


@torch.inference_mode()
def test_watching_changes_nothing_and_leaves_nothing() -> None:
    subject = on(MLP_ALONE)
    model, ids = subject.executing("auto", RandomRoutes(0.5)), subject.prompts(2, 8)
    hooks = [len(layer._forward_pre_hooks) for layer in routed_layers(model)]
    logits: list[torch.Tensor] = []
    task = Task(lambda _: logits.append(model(ids).logits), lambda: torch.manual_seed(0))
    traced_as_run(model, task)
    task.run(task.prepare())
    assert torch.equal(*logits)
    assert all(type(layer.packing) is PackingCost for layer in routed_layers(model))
    assert [len(layer._forward_pre_hooks) for layer in routed_layers(model)] == hooks


def test_what_fails_while_it_is_watched_leaves_nothing() -> None:
    model = on(NEVER).executing("auto", RandomRoutes(0.5))
    with pytest.raises(ZeroDivisionError):
        traced_as_run(model, Task(lambda _: 1 / 0))
    assert all(type(layer.packing) is PackingCost for layer in routed_layers(model))


def decided(*keep: bool) -> ModuleDecision:
    kept = torch.tensor([keep])
    return ModuleDecision.hard(kept, torch.zeros(kept.shape))


def test_only_where_tokens_differ_is_there_something_to_pack() -> None:
    some, every, none = decided(True, False), decided(True, True), decided(False, False)
    steps = [
        Step({0: Decision(some, every), 1: Decision(some, some)}, None),
        Step({0: Decision(none, some), 1: Decision(every, none)}, None),
    ]
    whole = {0: [{"attn"}, set()], 1: [set(), set()]}
    run = as_run(steps, whole)
    # Of four runs in which tokens differ, one was not packed.
    assert run.packed_share == 0.75
    assert [[keep.tolist() for keep in step.keeps()] for step in run.steps] == [
        [[[True, True]], [[True, True]], [[True, False]], [[True, False]]],
        [[[False, False]], [[True, False]], [[True, True]], [[False, False]]],
    ]
    assert steps[0].decisions[0].attn is some
    assert as_run(steps[1:], {0: [set()], 1: [set()]}).packed_share == 1.0
    assert as_run([], {}).packed_share == 1.0


def test_who_has_no_routes_packs_nothing() -> None:
    subject = on(NEVER)
    grid = Grid(
        phases=("prefill",),
        prompt_tokens=(8,),
        sparsities=(0.0,),
        executions=("auto", "static"),
        repeats=1,
    )
    auto, static = bench(subject, grid).rows
    assert (auto.packed_share, static.packed_share) == (1.0, None)
    routed = work(subject.routed, Forward(1, 8), dict.fromkeys(routers(subject.routed), 1.0))
    assert auto.flops_share == routed.flops / work(subject.routed, Forward(1, 8)).flops
