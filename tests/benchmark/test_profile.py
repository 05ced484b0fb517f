"""Measuring a machine for execution `auto`."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from pathlib import Path

import torch

from command import skipgpt
from skipgpt.benchmark.profile import profile_machine
from skipgpt.machine import Machine

CPU = torch.device("cpu")


def test_every_figure_is_a_positive_number() -> None:
    machine = profile_machine(CPU, repeats=1)
    assert all(value > 0 and math.isfinite(value) for value in dataclasses.astuple(machine))


def _cache_in(folder: Path) -> None:
    os.environ["SKIPGPT_CACHE"] = str(folder)


def test_the_command_keeps_what_it_measured(tmp_path: Path) -> None:
    here = functools.partial(_cache_in, tmp_path / "cache")
    finished = skipgpt("profile", "--json", before=here)
    assert finished.status == 0, finished.stderr
    printed = json.loads(finished.stdout)
    machine = Machine(**{f.name: printed[f.name] for f in dataclasses.fields(Machine)})
    kept = json.loads(Path(printed["path"]).read_text())
    assert {name: kept[name] for name in dataclasses.asdict(machine)} == dataclasses.asdict(machine)
    assert Path(printed["path"]).parent == tmp_path / "cache"
    assert "GFLOP/s" in skipgpt("profile", before=here).stdout
