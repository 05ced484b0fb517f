"""How the comparison of tokens between engines ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark_scripts import imported

script = imported("serving_tokens")


@pytest.mark.parametrize(("found", "status"), [([[7, 8], [9, 4]], 0), ([[7, 8], [9, 5]], 1)])
def test_the_status_says_whether_any_token_differs(
    found: list[list[int]], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tokens.json"
    monkeypatch.setattr(script, "of_transformers", lambda *_: ([[1], [2, 3]], [[7, 8], [9, 4]]))
    monkeypatch.setattr(script, "of_vllm", lambda *_, **__: [[[7, 8], [9, 4]], found])
    monkeypatch.setattr(script, "read_info", lambda _: SimpleNamespace(base="folder/small"))
    monkeypatch.setattr(script.skipgpt, "export_merged", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["serving_tokens", "fit", "--data", "w", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert int(end.value.code) == status
    written = json.loads(out.read_text())
    assert (written["checkpoint"], written["base"], written["prompts"]) == ("fit", "small", 2)
    assert [row["equal"] for row in written["rows"]] == [[2, 2 - status]] * 4
