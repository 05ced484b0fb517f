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

TARGETS = [(80, "bfloat16"), (90, "bfloat16")]
if LONG:
    TARGETS += [(86, "bfloat16"), (80, "float16"), (90, "float16"), (80, "float32")]
SINGLE = {"sum_kernel"}  # has no products


@pytest.mark.parametrize(("capability", "dtype"), TARGETS)
def test_every_launch_of_an_8b_llama_fits(capability: int, dtype: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), str(capability), dtype],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
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
    if (capability, dtype) == (90, "bfloat16"):
        hopper = {row["kernel"] for row in found["rows"] if row["products"].startswith("wgmma")}
        assert {"linear_kernel", "gate_up_kernel", "attend_kernel"} <= hopper
