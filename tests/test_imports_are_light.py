"""What costs seconds is imported when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "datasets", "lm_eval", "matplotlib", "accelerate"}
LIGHT = {
    "the package": "import skipgpt",
    "config and errors": "import skipgpt.config, skipgpt.errors; skipgpt.recipe('default')",
    "the command": "import skipgpt.cli",
    "help": "import sys; sys.argv = ['skipgpt', 'train', '--help']; import skipgpt.cli as c\n"
    "try: c.main()\nexcept SystemExit: pass",
}


@pytest.mark.parametrize("what", LIGHT)
def test_nothing_heavy_is_imported_for(what: str) -> None:
    code = LIGHT[what] + "\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()) & HEAVY == set()
    assert "skipgpt" in done.stderr.split()
