from __future__ import annotations

import sys

import pytest

from skipgpt.errors import MissingExtraError
from skipgpt.serving.vllm import register


def test_without_vllm_the_plug_in_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[vllm\]'"):
        register()
