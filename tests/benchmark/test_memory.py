"""What a run holds at most, and cells that do not fit."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

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


def fails_at_two(monkeypatch: pytest.MonkeyPatch, error: Exception, below: float = 1.0) -> None:
    """Let batches of two fail at sparsities below this one."""
    rows = bench_module._rows

    def too_large(subject: object, candidates: object, point: Any, repeats: int) -> object:
        if len(point.ids) > 1 and point.sparsity < below:
            raise error
        return rows(subject, candidates, point, repeats)

    monkeypatch.setattr(bench_module, "_rows", too_large)


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_cell_without_memory_is_left_out_and_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails_at_two(monkeypatch, error)
    result = bench(subject_of_shape("llama-tiny"), GRID)
    assert [row.batch_size for row in result.rows] == [1]
    sentence = "prefill of 2 x 4 at 50% is left out: out of memory."
    assert result.left_out == (sentence,)
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
        sentence
    ]


def test_sparsities_without_memory_are_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails_at_two(monkeypatch, MemoryError(), below=0.5)
    kinds, asked = ("sparse", "transformers"), (0.0, 0.125, 0.5, 0.6)
    grid = dataclasses.replace(GRID, batch_sizes=(2,), executions=kinds, sparsities=asked)
    result = bench(subject_of_shape("llama-tiny"), grid)
    assert result.left_out == ("prefill of 2 x 4 at 0%, 12.5% is left out: out of memory.",)
    # What no sparsity changes is timed at the first one that fits.
    assert [(row.execution, row.asked) for row in result.rows] == [
        ("sparse", 0.5),
        ("transformers", None),
        ("sparse", 0.6),
    ]


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_an_error_of_the_task_itself_is_not_taken_for_a_silent_system() -> None:
    def fails(_: object) -> None:
        raise FileNotFoundError("weights are gone")

    with pytest.raises(FileNotFoundError, match="weights are gone"):
        peak_memory(Task(fails), CPU)


def test_where_the_system_knows_no_peak_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: None)
    monkeypatch.setattr(Path, "read_text", lambda _: "Name:\tpython\nVmRSS:\t12 kB\n")
    assert peak_memory(Task(lambda _: None), CPU) is None


def test_of_devices_that_do_not_tell_nothing_is_said() -> None:
    assert peak_memory(Task(lambda _: pytest.fail("it ran")), torch.device("mps")) is None
