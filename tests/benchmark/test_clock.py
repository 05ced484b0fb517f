"""Taking turns on the clock."""

from __future__ import annotations

import sys

import pytest
import torch

from skipgpt.benchmark.clock import Task, alternate, peak_memory
from skipgpt.hardware import hardware

CPU = torch.device("cpu")


def test_tasks_take_turns_and_are_prepared_off_the_clock() -> None:
    calls: list[tuple[str, object]] = []
    tasks = {
        name: Task(lambda given, name=name: calls.append((name, given)), lambda: len(calls))
        for name in ("dense", "sparse")
    }
    seconds = alternate(tasks, repeats=2, device=CPU, warmup=1)
    assert [name for name, _ in calls] == ["dense", "sparse"] * 3
    assert [given for _, given in calls] == list(range(6))
    assert {name: len(each) for name, each in seconds.items()} == {"dense": 2, "sparse": 2}
    assert all(second >= 0 for each in seconds.values() for second in each)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_peak_memory_sees_what_one_run_held() -> None:
    small = peak_memory(Task(lambda _: None), CPU)
    large = peak_memory(Task(lambda _: torch.ones(64 << 20, dtype=torch.uint8).sum()), CPU)
    assert large - small >= 60 << 20
    assert peak_memory(Task(lambda _: None), CPU) < large


def test_a_figure_names_its_hardware() -> None:
    assert {"device", "threads", "torch", "transformers"} <= hardware(CPU).keys()
