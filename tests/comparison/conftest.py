"""One comparison of every kind, made once, and a record of what is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import ALL, WHOLE
from runs import compared, write_documents
from skipgpt.comparison import static, trained
from skipgpt.comparison.result import Comparison
from tiny import byte_tokenizer, tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    tiny_base(initializer_range=0.2).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    write_documents(folder)
    return folder / "base"


@pytest.fixture(scope="session")
def everything(base: Path) -> Comparison:
    """One comparison of every kind; its folder is `all` beside the base."""
    torch.manual_seed(0)
    return compared(base, base.parent / "all", *ALL, sparsities=(WHOLE,), draw=True)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained or searched from now on, in order."""
    done: list[str] = []

    def counted(module: Any, name: str, label: str, counts: Any = lambda *_: True) -> None:
        original = getattr(module, name)

        def wrapper(*args: Any, **options: Any) -> Any:
            if counts(*args):
                done.append(label)
            return original(*args, **options)

        monkeypatch.setattr(module, name, wrapper)

    counted(trained, "train", "train")
    counted(trained, "run_stage", "top k")
    counted(static, "run_stage", "heal")
    counted(static, "remove", "static", lambda *args: args[-1] is None)  # no folder to heal in
    counted(trained, "random_routes", "random")
    counted(trained, "measure_at_sparsities", "dial")
    return done
