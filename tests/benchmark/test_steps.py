"""What is timed of training, apart from time."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from skipgpt.benchmark import steps
from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.steps import StepCell
from skipgpt.benchmark.subject import Subject, subject_of_shape
from skipgpt.benchmark.timing.candidate import Candidates
from skipgpt.benchmark.timing.clock import Task
from skipgpt.cost import training_flops
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import RandomRoutes


@pytest.fixture
def subject() -> Subject:
    return subject_of_shape("llama-tiny")


def made_of(subject: Subject, phase: str, *executions: str, sparsity: float = 0.5) -> Candidates:
    cell = StepCell(phase, subject.prompts(2, 8))
    return steps.candidates(subject, cell, RandomRoutes(sparsity), executions)


def loss(task: Task) -> float:
    return float(task.run(task.prepare()))


def test_a_step_trains_lora_alone(subject: Subject) -> None:
    before = {name: p.detach().clone() for name, p in subject.routed.named_parameters()}
    made = made_of(subject, "lora_step", "sparse", "gated")
    for task in (made.dense, *(each.task for each in made.candidates)):
        first, *_, last = (loss(task) for _ in range(20))
        assert last < first
    assert all(torch.equal(p, before[name]) for name, p in subject.routed.named_parameters())


@pytest.mark.parametrize("phase", ["lora_step", "router_step"])
def test_a_step_runs_the_flops_that_are_counted_so_without_a_teacher(
    subject: Subject, phase: str
) -> None:
    made, spent = made_of(subject, phase, "gated", sparsity=0.0), []
    for task in (made.dense, made.candidates[0].task):
        given = task.prepare()
        with FlopCounterMode(display=False) as counter:
            task.run(given)
        spent.append(counter.get_total_flops())
    # A teacher, which dense has not, would add a forward: a third.
    dense, routed = spent
    assert routed / dense == pytest.approx(made.candidates[0].flops_share, rel=0.1)


def test_a_routers_step_leaves_the_subjects_own_routers_alone(subject: Subject) -> None:
    before = {
        site: router.weight.detach().clone() for site, router in routers(subject.routed).items()
    }
    (candidate,) = made_of(subject, "router_step", "sparse").candidates
    assert candidate.execution == "gated"
    first = loss(candidate.task)
    assert loss(candidate.task) != first
    for site, router in routers(subject.routed).items():
        assert torch.equal(router.weight, before[site])


def test_sparse_and_gated_take_the_same_step(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout draws for the tokens that run, so without it.
    config = steps.CONFIG
    without = type(config.lora_stage)(steps=1, dropout=0.0)
    monkeypatch.setattr(steps, "CONFIG", type(config)(lora_stage=without))
    made = made_of(subject, "lora_step", "sparse", "gated")
    sparse, gated = ([loss(each.task) for _ in range(3)] for each in made.candidates)
    # Losses near 5.5; equal sums in another order.
    assert sparse == pytest.approx(gated, abs=1e-5)
    assert sparse != pytest.approx([loss(made.dense) for _ in range(3)], abs=1e-4)


def test_the_ideal_is_that_of_the_routes_that_run(subject: Subject) -> None:
    nothing = made_of(subject, "lora_step", "sparse", sparsity=0.0).candidates[0]
    half = made_of(subject, "lora_step", "sparse", "gated").candidates
    assert nothing.sparsity == 0
    # Routers alone come on top of dense.
    assert 0.98 < nothing.ideal(0.0) < 1
    ideal = half[0].ideal(0.0)
    assert half[1].ideal(0.0) == ideal > 1.2
    assert ideal == pytest.approx(1 / half[0].flops_share)


def test_a_routers_step_is_compared_with_the_dense_lora_step(subject: Subject) -> None:
    made = made_of(subject, "router_step")
    cell = StepCell("router_step", subject.prompts(2, 8))
    run = training_flops(subject.routed, cell.forward, "router")
    (candidate,) = made.candidates
    assert candidate.flops_share == pytest.approx(1 / candidate.ideal(0.0))
    lora = candidate.flops_share * training_flops(subject.routed, cell.forward, None)
    # What LoRA costs is all that is between the two.
    assert lora < run
    assert loss(made.dense) > 0


def test_a_routers_step_has_a_row_a_length_whatever_the_sparsities(subject: Subject) -> None:
    grid = Grid(
        phases=("router_step", "lora_step"),
        prompt_tokens=(8, 12),
        sparsities=(0.0, 0.5),
        executions=("sparse",),
        repeats=1,
    )
    rows = bench(subject, grid).rows
    assert [(row.phase, row.execution, row.prompt_tokens) for row in rows] == [
        ("router_step", "gated", 8),
        ("router_step", "gated", 12),
        *[("lora_step", "sparse", tokens) for tokens in (8, 12) for _ in grid.sparsities],
    ]
    assert [row.sparsity for row in rows if row.phase == "lora_step"][::2] == [0.0, 0.0]
    assert all(row.new_tokens == 0 for row in rows)
    assert all(row.tokens_per_second == row.prompt_tokens / row.sparse_seconds for row in rows)
