"""The experiments beside the package: each file resolves, and the runner writes its table."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from command import Finished, script
from runs import COMPARED, write_documents
from skipgpt.comparison.method import parse_method
from skipgpt.config import recipe
from skipgpt.config.settings import override

FOLDER = Path(__file__).parent.parent / "experiments"
FILES = sorted(FOLDER.glob("*.toml"))


def run(*arguments: object) -> Finished:
    return script(FOLDER / "run.py", *arguments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_an_experiment_compares_exists(path: Path) -> None:
    plan = tomllib.loads(path.read_text())
    assert plan["title"]
    config = override(recipe("default"), plan["settings"])
    for text in plan["methods"]:
        method = parse_method(text)
        override(config, dict(method.settings))
    assert len(plan["seeds"]) >= 2


def test_a_narrowed_experiment_prints_its_table_and_writes_the_page_it_is_given(
    base_folder: Path, tmp_path: Path
) -> None:
    data, page = write_documents(tmp_path), tmp_path / "page.md"
    settings = [f"{key}={value}" for key, value in COMPARED.items()]
    finished = run(
        *("retention", "--base", base_folder, "--data", data, "--out", tmp_path / "out"),
        *("--methods", "dense", "sleb", "--seeds", 0, "--page", page, "--set", *settings),
    )
    assert finished.status == 0, finished.stderr
    assert "sleb" in finished.stdout
    text = page.read_text()
    assert "## Router-only retention: base" in text
    assert str(tmp_path) not in text
    assert "--page page.md" in text
    assert "--methods dense sleb" in text


def test_a_changed_experiment_leaves_the_page_of_results_alone(
    base_folder: Path, tmp_path: Path
) -> None:
    results = FOLDER.parent / "docs" / "results.md"
    before = results.read_bytes()
    data = write_documents(tmp_path)
    settings = [f"{key}={value}" for key, value in COMPARED.items()]
    finished = run(
        *("dial", "--base", base_folder, "--data", data, "--out", tmp_path / "out"),
        *("--methods", "dense", "router", "--sparsity", 0.4, "--seeds", 0),
        *("--set", *settings, "router_stage.steps=1", "router_stage.static_tokens=64"),
    )
    assert finished.status == 0, finished.stderr
    assert "router (dial of 0.4)" in finished.stdout
    assert results.read_bytes() == before


def test_an_unknown_method_is_one_line(base_folder: Path, tmp_path: Path) -> None:
    data = write_documents(tmp_path)
    finished = run("dial", "--base", base_folder, "--data", data, "--methods", "nonsense")
    assert finished.status != 0
    assert "Traceback" not in finished.stderr
    assert "got 'nonsense'" in finished.stderr.splitlines()[-1]
