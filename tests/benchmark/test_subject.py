"""What is timed against what: one thing differs, and learned routes run as they were set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from cases import KEEP_ALL
from runs import write_documents
from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.inference import candidates
from skipgpt.benchmark.subject import subject_of_checkpoint, subject_of_shape
from skipgpt.benchmark.timing.clock import Task
from skipgpt.benchmark.timing.phases import Cell
from skipgpt.checkpoint.saving import describe, save
from skipgpt.errors import ConfigError, DataError
from skipgpt.model.base import load_base
from skipgpt.model.caches.growing_cache import PreallocatedLayer
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.routing.curve import CalibrationCurve, Curves
from skipgpt.routing.decision import Threshold


@torch.no_grad()
def test_dense_has_the_cache_of_the_routed_model_and_transformers_its_own() -> None:
    """At 0 % nothing tells dense and routed apart but the routers."""
    subject = subject_of_shape("llama-tiny")
    ids = subject.prompts(1, 8)
    model = subject.executing("auto", KEEP_ALL)
    for phase in ("decode", "generate"):
        cell = Cell(phase, ids, 4)
        made = candidates(subject, cell, KEEP_ALL, ("transformers",))
        plain, routed = made.candidates[0].task, cell.task(model)
        kinds = [layer_kinds(each) for each in (made.dense, routed, plain)]
        assert kinds == [{PreallocatedLayer}, {PreallocatedLayer}, {DynamicLayer}]


def layer_kinds(task: Task) -> set[type]:
    """The classes of the cache layers that a run appends to."""
    seen: set[type] = set()
    with pytest.MonkeyPatch.context() as patch:
        for kind in (PreallocatedLayer, DynamicLayer):
            update = kind.update

            def noted(self: object, *args: object, update: Any = update, **more: object) -> Any:
                seen.add(type(self))
                return update(self, *args, **more)

            patch.setattr(kind, "update", noted)
        task.run(task.prepare())
    return seen


def test_a_checkpoint_is_timed_at_the_sparsity_it_is_set_to(
    base_folder: Path, tmp_path: Path
) -> None:
    model = add_routers(load_base(str(base_folder))[0])
    save(model, tmp_path / "out", describe(model, str(base_folder), target_sparsity=0.35))
    data = [str(write_documents(tmp_path))]
    subject = subject_of_checkpoint(tmp_path / "out", data, tokens=64)
    assert subject.sparsities == (0.35,)
    assert (subject.name, subject.base) == ("out", str(base_folder))


def test_a_target_that_the_curve_does_not_reach_is_timed_where_the_curve_ends(
    base_folder: Path, tmp_path: Path
) -> None:
    model = add_routers(load_base(str(base_folder))[0])
    curve = CalibrationCurve(((0.0, -math.inf), (0.2, 0.5)))
    routing_state(model).curves = Curves({"flops": curve}, "flops")
    save(model, tmp_path / "out", describe(model, str(base_folder), target_sparsity=0.35))
    data = [str(write_documents(tmp_path))]
    subject = subject_of_checkpoint(tmp_path / "out", data, tokens=64)
    assert subject.sparsities == (0.2,)
    assert (subject.unit(), subject.rule(0.2)) == ("flops", Threshold(0.5))


def test_the_unit_of_random_routes_is_modules() -> None:
    subject = subject_of_shape("llama-tiny")
    assert subject.unit() == subject.unit("modules") == "modules"
    with pytest.raises(ConfigError, match="flops of a shape, whose routes are drawn at random"):
        bench(subject, Grid(("prefill",), sparsities=(0.25,), budget="flops"))


def test_too_little_text_for_a_cell_is_refused() -> None:
    with pytest.raises(DataError, match="--data"):
        subject_of_shape("llama-tiny").prompts(1, 1 << 20)
