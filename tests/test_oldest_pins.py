from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_what_is_left_out_on_the_oldest_pins_is_there() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "test-lowest"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    left_out = re.findall(r"--ignore=(\S+)", done.stdout)
    assert "tests/advice" in left_out
    assert [path for path in left_out if not (ROOT / path).exists()] == []
