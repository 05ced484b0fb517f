"""The standard library and data sets of a hub as text."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from skipgpt.data import (
    Document,
    stdlib_documents,
)
from skipgpt.errors import MissingExtraError
from texts import read, refusal, texts, write


def test_the_standard_library_is_there_in_a_fixed_order_without_installed_packages() -> None:
    documents = stdlib_documents()
    names = [document.name for document in documents]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert [name.split("/") for name in names] == sorted(name.split("/") for name in names)
    assert not any("site-packages" in name or "/test" in f"/{name}" for name in names)


def test_a_module_shares_its_group_with_its_test_its_private_half_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json/__init__.py", "_json.py", "json.py", "test/test_json.py", "test/support.py"):
        write(tmp_path / name, "x = 1\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    groups = {document.name: document.group for document in stdlib_documents(with_tests=True)}
    assert groups.pop("test/support.py") == "support"
    assert len(groups) == 4
    assert set(groups.values()) == {"json"}
    assert len(stdlib_documents()) == 3


def test_files_of_the_standard_library_that_are_not_utf_8_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "good.py", "x = 1\n")
    write(tmp_path / "bad.py", "# -*- coding: latin-1 -*- é".encode("latin-1"))
    write(tmp_path / "site-packages/other.py", "x = 2\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert stdlib_documents() == [Document("good.py", "x = 1\n", "good")]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A stand-in for `datasets`; what it was asked, and how many rows were taken."""
    seen: dict[str, object] = {"taken": 0}

    def load_dataset(name: str, subset: str | None, **options: object) -> Iterator[object]:
        seen.update(name=name, subset=subset, **options)
        if name == "org/gone":
            raise ConnectionError("Couldn't reach 'org/gone' on the Hub\nsecond line")
        if name == "org/empty":
            return iter(())

        def rows() -> Iterator[object]:
            for number in range(1, 1_000_000):
                seen["taken"] = number
                yield {"body": f"row {number}"}

        return rows()

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return seen


def test_a_hub_dataset_is_streamed_and_left_when_there_is_enough(hub: dict[str, object]) -> None:
    found = texts("org/name:small", text_field="body", max_documents=3)
    assert found == ["row 1", "row 2", "row 3"]
    assert hub == {
        "name": "org/name",
        "subset": "small",
        "split": "train",
        "streaming": True,
        "taken": 3,
    }


def test_a_local_path_comes_before_a_hub_dataset(
    hub: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "org/name/a.txt", "local")
    monkeypatch.chdir(tmp_path)
    assert texts("org/name") == ["local"]
    assert hub == {"taken": 0}


def test_a_hub_dataset_out_of_reach_says_how_to_do_without(hub: dict[str, object]) -> None:
    error = refusal("org/gone")
    assert "org/gone" in error.doing
    assert error.got == "ConnectionError: Couldn't reach 'org/gone' on the Hub"
    assert "HF_HUB_OFFLINE" in error.todo
    assert isinstance(error.__cause__, ConnectionError)


def test_a_hub_dataset_without_the_field_or_without_rows_is_refused(
    hub: dict[str, object],
) -> None:
    error = refusal("org/name")
    assert "row 1 with the fields body" in error.got
    assert error.todo.endswith("--text-field=body (text_field)")
    assert "no row with text" in refusal("org/empty").got


def test_the_real_datasets_package_is_refused_as_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    hub_constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    error = refusal("skipgpt-tests/nowhere")
    assert "skipgpt-tests/nowhere" in error.got
    assert "network" in error.todo


@pytest.mark.parametrize(("source", "module"), [("org/name", "datasets"), ("", "pyarrow")])
def test_a_missing_extra_prints_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'skipgpt[data]'")) as caught:
        read(source or write(tmp_path / "a.parquet", b"PAR1"))
    assert module in str(caught.value)
