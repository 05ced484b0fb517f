"""Errors of commands: caused, and their advice followed, in each command that can raise them."""

from __future__ import annotations

from pathlib import Path

import pytest

from advice_on_data import ON_DATA
from advice_on_models import ON_MODELS
from advice_on_options import CONVERT, ON_OPTIONS
from advice_on_stops import ON_STOPS, broken
from advice_on_training import ON_TRAINING
from following import Told, follow, printed, run
from made_world import world

ROWS = [*ON_DATA, *ON_MODELS, *ON_OPTIONS, *ON_TRAINING, *ON_STOPS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_advice_of_an_error_can_be_followed(row: Told, tmp_path: Path) -> None:
    follow(row, tmp_path)


def test_a_bug_shows_where_it_is(tmp_path: Path) -> None:
    for path in world().iterdir():
        (tmp_path / path.name).symlink_to(path)
    printed(
        "cli/__init__.py", "unexpected …; --traceback shows where", run(CONVERT, tmp_path, broken)
    )
    shown = run(f"{CONVERT} --traceback", tmp_path, broken)
    assert "Traceback" in shown.stderr
    assert "into_checkpoint.py" in shown.stderr
