"""Every launch compiles for GPUs that are not here, and fits onto them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import twins  # noqa: F401 - skips where there is no Triton

from tiny import LONG

GPUS = {"bfloat16": (80, 86, 90) if LONG else (80, 90)}
"""Compute capabilities, by type; in one process, which imports Triton once."""
if LONG:
    GPUS |= {"float16": (80, 90), "float32": (80,)}
SINGLE = {"sum_kernel"}  # has no products
# Kept: Triton's key holds the source, the options, the target and the version.
COMPILED = Path(__file__).parents[2] / "build" / "triton"


@pytest.mark.parametrize("dtype", GPUS)
def test_every_launch_of_an_8b_llama_fits(dtype: str) -> None:
    program = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run(
        [sys.executable, program, dtype, *map(str, GPUS[dtype])],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(COMPILED)},
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert list(made) == [str(capability) for capability in GPUS[dtype]]
    for found in made.values():
        assert {row["kernel"] for row in found["rows"]} == {
            *("linear_kernel", "gate_up_kernel", "attend_kernel", "split_kernel", "sum_kernel"),
            *("decode_linear_kernel", "decode_gate_up_kernel"),
        }
        for row in found["rows"]:
            assert row["shared"] <= found["limit"], row
            if dtype == "float32":
                continue  # without tensor cores, and some tiles spill
            assert row["stack"] == 0, row
            assert (row["products"] == "fma") == (row["kernel"] in SINGLE), row
    if dtype == "bfloat16":
        rows = made["90"]["rows"]
        hopper = {row["kernel"] for row in rows if row["products"].startswith("wgmma")}
        assert {"linear_kernel", "gate_up_kernel", "attend_kernel"} <= hopper
