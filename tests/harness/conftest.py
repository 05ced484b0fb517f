from __future__ import annotations

import pytest
from lm_eval.tasks._index import TaskIndex

from harness_index import index_file, read_from


@pytest.fixture
def known_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness finds the index of its own tasks made."""
    monkeypatch.setattr(TaskIndex, "build", read_from(index_file()))
