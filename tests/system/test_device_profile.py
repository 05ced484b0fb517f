"""What is known of a machine, and what becomes of files that are damaged."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path

import pytest
import torch

from skipgpt.errors import CheckpointError
from skipgpt.system.device_profile import (
    Machine,
    path_of,
    profile_of,
    store_profile,
    stored_profile,
    typical,
)

CPU = torch.device("cpu")
MEASURED = Machine(flops=2e11, bandwidth=1e10, mlp_packing=1e-5, attn_packing=3e-5)


def test_a_machine_that_was_never_measured_is_a_common_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert profile_of(CPU, torch.float32) == typical(CPU)
    assert not caplog.records
    assert typical(torch.device("cuda")).flops > typical(CPU).flops


def test_a_measurement_is_found_again_for_its_dtype_alone() -> None:
    path = store_profile(MEASURED, CPU, torch.float32)
    assert path == path_of(CPU, torch.float32)
    assert profile_of(CPU, torch.float32) == stored_profile(CPU, torch.float32) == MEASURED
    assert profile_of(CPU, torch.bfloat16) == typical(CPU)
    assert stored_profile(CPU, torch.bfloat16) is None
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def with_flops(value: object) -> str:
    return json.dumps(dataclasses.asdict(MEASURED) | {"flops": value})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}"]
    + [with_flops(each) for each in (-1, 0, math.nan, math.inf, -math.inf, 10**400, "many")],
)
def test_a_damaged_file_is_said_and_passed_over(
    text: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("skipgpt"), "propagate", True)
    store_profile(MEASURED, CPU, torch.float32).write_text(text)
    assert profile_of(CPU, torch.float32) == typical(CPU)
    assert stored_profile(CPU, torch.float32) is None
    assert "skipgpt profile" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKIPGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"file.*SKIPGPT_CACHE"):
        store_profile(MEASURED, CPU, torch.float32)


def test_the_cache_folder_of_the_user_is_asked_for_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKIPGPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert path_of(CPU, torch.float32).parent == tmp_path / "skipgpt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of(CPU, torch.float32).parent == tmp_path / ".cache" / "skipgpt"


def test_of_a_user_without_a_home_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SKIPGPT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert profile_of(CPU, torch.float32) == typical(CPU)
    assert not caplog.records
    with pytest.raises(CheckpointError, match=r"home directory.*SKIPGPT_CACHE"):
        store_profile(MEASURED, CPU, torch.float32)


def test_a_product_takes_as_long_as_its_flops_or_its_bytes() -> None:
    machine = Machine(flops=100.0, bandwidth=10.0, mlp_packing=1.0, attn_packing=1.0)
    assert machine.product_seconds(weights=5, rows=1, number_bytes=4) == 2.0
    assert machine.product_seconds(weights=5, rows=40, number_bytes=4) == 4.0
