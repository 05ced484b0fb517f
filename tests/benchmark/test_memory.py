"""What a run holds at most, and cells that do not fit."""

from __future__ import annotations

import sys

import pytest
import torch

from skipgpt.benchmark import bench as bench_module
from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.subject import subject_of_shape
from skipgpt.benchmark.timing.clock import Task, is_out_of_memory, peak_memory

CPU = torch.device("cpu")
GRID = Grid(("prefill",), (1, 2), (4,), sparsities=(0.5,), executions=("sparse",), repeats=1)
OF_A_CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: {}: you tried to …"
REFUSALS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError(OF_A_CPU.format("can't allocate memory")),
    RuntimeError(OF_A_CPU.format("not enough memory")),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)."),
]


def fails_at_two(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    rows = bench_module._rows

    def too_large(
        subject: object, field: object, phase: str, ids: torch.Tensor, *rest: object
    ) -> object:
        if len(ids) > 1:
            raise error
        return rows(subject, field, phase, ids, *rest)

    monkeypatch.setattr(bench_module, "_rows", too_large)


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_cell_without_memory_is_left_out_and_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at_two(monkeypatch, error)
    result = bench(subject_of_shape("llama-tiny"), GRID)
    assert [row.batch_size for row in result.rows] == [1]
    assert result.left_out == ("prefill of 2 x 4 is left out: out of memory.",)


def test_another_failure_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at_two(monkeypatch, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="do not fit"):
        bench(subject_of_shape("llama-tiny"), GRID)


def test_torch_is_understood_where_a_cpu_has_no_more() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_peak_memory_sees_what_one_run_held() -> None:
    small = peak_memory(Task(lambda _: None), CPU)
    large = peak_memory(Task(lambda _: torch.ones(64 << 20, dtype=torch.uint8).sum()), CPU)
    assert large - small >= 60 << 20
    assert peak_memory(Task(lambda _: None), CPU) < large


def test_of_devices_that_do_not_tell_nothing_is_said() -> None:
    assert peak_memory(Task(lambda _: pytest.fail("it ran")), torch.device("mps")) is None
