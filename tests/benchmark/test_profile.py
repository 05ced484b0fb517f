"""Measuring a machine for execution `auto`; seconds are given, so that figures can be checked."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from command import skipgpt
from skipgpt.benchmark import profile
from skipgpt.benchmark.profile import profile_machine
from skipgpt.benchmark.timing.clock import Task
from skipgpt.kernels.interface import Kernels
from skipgpt.model.state import record_routing, routing_state
from skipgpt.system.device_profile import Machine

CPU = torch.device("cpu")
SECONDS = {
    "product": [9.0, 0.5, 0.1],
    "read": [0.25, 8.0, 0.01],
    "attn gated": [1.0, 1.0, 5.0],
    "attn sparse": [3.0, 0.0, 9.0],
    "mlp gated": [2.0, 2.0, 2.0],
    "mlp sparse": [2.5, 2.4, 2.6],
}


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, list[float]]) -> dict[str, Task]:
    """Let these be the seconds; the tasks that they would be of."""
    seen: dict[str, Task] = {}

    def alternate(tasks: dict[str, Task], *_: object, **given: object) -> Mapping[str, list[float]]:
        seen.update(tasks)
        return {name: seconds[name] for name in tasks}

    monkeypatch.setattr(profile, "alternate", alternate)
    return seen


@pytest.mark.parametrize(("dtype", "number_bytes"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_figures_follow_from_the_medians(
    dtype: torch.dtype, number_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, SECONDS)
    assert profile_machine(CPU, dtype) == Machine(
        # A product of 512 rows with 2,048 x 2,048 weights in half a second.
        flops=2 * 512 * 2048 * 2048 / 0.5,
        # 2 ** 24 weights in a quarter of a second.
        bandwidth=2**24 * number_bytes / 0.25,
        # What packing in eight layers takes beyond running all tokens.
        mlp_packing=pytest.approx(0.5 / 8),
        attn_packing=pytest.approx(2.0 / 8),
    )


def test_packing_is_never_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, SECONDS | {"mlp sparse": [1.0] * 3})
    assert profile_machine(CPU).mlp_packing == 1e-6


def test_one_module_at_a_time_skips_half_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = timed(monkeypatch, SECONDS)
    profile_machine(CPU)
    for module, other in (("attn", "mlp"), ("mlp", "attn")):
        for kind in ("gated", "sparse"):
            task = tasks[f"{module} {kind}"]
            model = task.run.args[0]
            with torch.inference_mode(), record_routing(model) as trace:
                task.run(task.prepare())
            assert routing_state(model).execution == kind
            assert trace.sparsity(module) == 0.5
            assert trace.sparsity(other) == 0.0


def test_the_products_are_those_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = timed(monkeypatch, SECONDS)
    profile_machine(CPU)
    assert tasks["product"].run(None).shape == (512, 2048)
    assert tasks["read"].run(None).shape == (1, 2**24 // 2048)


def test_packing_of_pytorch_is_measured_where_there_are_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **given: object) -> None:
        pytest.fail("a kernel ran")

    names = [each.name for each in dataclasses.fields(Kernels)]
    kernels = Kernels(**dict.fromkeys(names, refused))
    monkeypatch.setattr("skipgpt.kernels.select.kernels_for", lambda *_: kernels)
    tasks = timed(monkeypatch, SECONDS)
    profile_machine(CPU)
    with torch.inference_mode():
        for task in tasks.values():
            task.run(task.prepare())


def test_every_figure_of_this_machine_is_a_positive_number() -> None:
    machine = profile_machine(CPU, repeats=1)
    assert all(value > 0 and math.isfinite(value) for value in dataclasses.astuple(machine))


MEASURED = Machine(flops=3e10, bandwidth=8e9, mlp_packing=2e-5, attn_packing=1e-4)


def _measuring_in(cache: Path) -> None:
    os.environ["SKIPGPT_CACHE"] = str(cache)
    profile.profile_machine = lambda *_: MEASURED


def test_the_command_keeps_what_it_measured(tmp_path: Path) -> None:
    here = functools.partial(_measuring_in, tmp_path / "cache")
    finished = skipgpt("profile", "--json", before=here)
    assert finished.status == 0, finished.stderr
    printed = json.loads(finished.stdout)
    assert Machine(**{f.name: printed[f.name] for f in dataclasses.fields(Machine)}) == MEASURED
    kept = json.loads(Path(printed["path"]).read_text())
    assert {name: kept[name] for name in dataclasses.asdict(MEASURED)} == dataclasses.asdict(
        MEASURED
    )
    assert Path(printed["path"]).parent == tmp_path / "cache"
    assert "30 GFLOP/s" in skipgpt("profile", before=here).stdout
