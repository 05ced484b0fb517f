"""Comparisons at budgets in time, which count the seconds of one forward on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import by_method
from runs import compared
from skipgpt.errors import ConfigError
from skipgpt.system.device_profile import Machine, store_profile

MEMORY = Machine(flops=1e15, bandwidth=1e9, mlp_packing=1e-9, attn_packing=1e-9)
"""In decode of one row, reading weights and the cache is all that takes time."""
DECODE = {"budget_time.phase": "decode", "budget_time.context": 32, "router.stand_in": 2}


def _profile(machine: Machine = MEMORY) -> None:
    store_profile(machine, torch.device("cpu"), torch.float32)


def _compared(base: Path, out: Path, *methods: str, share: float = 0.2) -> Any:
    return compared(base, out, *methods, sparsities=(share,), budget="time", settings=DECODE)


def test_every_method_saves_the_same_share_of_the_seconds(base: Path, tmp_path: Path) -> None:
    _profile()
    found = _compared(base, tmp_path / "out", "dense", "router", "sleb", "fisher+stand_in", "laco")
    rows = by_method(found)
    assert rows["dense"].sparsity["time"] == 0
    for name in ("sleb", "fisher+stand_in"):
        assert rows[name].sparsity["time"] == pytest.approx(0.2)
    assert rows["router"].sparsity["time"] == pytest.approx(0.2, abs=0.1)
    config = json.loads((Path(str(rows["router"].checkpoint)) / "run.json").read_text())["config"]
    assert (config["budget"], config["budget_time"]["phase"]) == ("time", "decode")
    for table in (found.to_markdown(), found.to_terminal()):
        assert table.count("20.0% of time") == 4
        assert " time " in table.splitlines()[0]


def test_another_profile_makes_other_rows_and_the_same_one_none(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    for machine, number in ((MEMORY, 1), (MEMORY, 1), (Machine(1e9, 1e15, 1e-9, 1e-9), 2)):
        _profile(machine)
        _compared(base, tmp_path / "out", "sleb")
        assert len(made) == number


def test_without_a_profile_time_is_refused_before_anything_is_measured(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipgpt.comparison.setup.perplexity", None)
    with pytest.raises(ConfigError, match=r"counting a budget in time: .* run `skipgpt profile"):
        _compared(base, tmp_path / "out", "dense")


def test_the_best_tokens_of_a_layer_are_no_share_of_seconds(base: Path, tmp_path: Path) -> None:
    _profile()
    with pytest.raises(ConfigError, match="comparing mod: got a budget in time; expected one in"):
        _compared(base, tmp_path / "out", "dense", "mod", share=0.1)


def test_the_forward_that_is_timed_is_one_for_all_methods(base: Path, tmp_path: Path) -> None:
    _profile()
    with pytest.raises(ConfigError, match=r"a budget_time\.phase of its own; expected one for all"):
        _compared(base, tmp_path / "out", "router:budget_time.phase=prefill")
