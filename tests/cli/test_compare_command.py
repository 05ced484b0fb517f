"""skipgpt compare, as a script sees it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from command import Finished, skipgpt
from runs import COMPARED, write_documents

SETTINGS = [
    part
    for key, value in COMPARED.items()
    if key != "stages"
    for part in ("--set", f"{key}={value}")
]


def without_matplotlib() -> None:
    sys.modules["matplotlib.figure"] = None  # type: ignore[assignment]


@pytest.fixture
def places(base_folder: Path, tmp_path: Path) -> tuple[object, ...]:
    """The arguments that every comparison has here."""
    data = write_documents(tmp_path)
    return ("compare", base_folder, "--data", data, "--out", tmp_path / "out", *SETTINGS)


def _compare(places: tuple[object, ...], *more: object) -> Finished:
    return skipgpt(*places, *more, before=without_matplotlib)


def test_compare_prints_exactly_one_document(places: tuple[object, ...], tmp_path: Path) -> None:
    finished = _compare(
        *(places, "--methods", "dense,router@paper,sleb", "--sparsity", "0.25,0.5"),
        *("--steps", "2", "--lr", "0.01", "--batch-size", "3", "--block-size", "12", "--json"),
    )
    assert finished.status == 0, finished.stderr
    document = json.loads(finished.stdout)
    rows = document["rows"]
    assert [(row["method"], row["target"]) for row in rows] == [
        ("dense", 0.0),
        ("router@paper", 0.25),
        ("router@paper (sampled)", 0.25),
        ("router@paper", 0.5),
        ("router@paper (sampled)", 0.5),
        ("sleb", 0.25),
        ("sleb", 0.5),
    ]
    keys = {"method", "sparsity", "nll_per_token", "excess_nll", "flops"}
    assert all(keys <= row.keys() for row in rows)
    settings = document["facts"]["settings"]
    assert settings["router_stage"]["steps"] == 2
    assert settings["router_stage"]["learning_rate"] == 0.01
    assert (settings["batch_size"], settings["data"]["block_size"]) == (3, 12)
    run = json.loads((Path(rows[1]["checkpoint"]) / "run.json").read_text())["config"]
    assert (run["recipe"], run["batch_size"], run["router_stage"]["steps"]) == ("paper", 3, 2)
    assert run["router_stage"]["learning_rate"] == 2e-3  # the paper's own
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == document


def test_for_people_it_is_a_table_and_what_was_found_is_not_run_again(
    places: tuple[object, ...], tmp_path: Path
) -> None:
    asked = ("--methods", "dense, router", "--seeds", "0,1", "--dial", "0.1")
    first = _compare(places, *asked)
    assert first.status == 0, first.stderr
    head, dense, router, dial, *rest = first.stdout.splitlines()
    assert head.split()[:3] == ["method", "nats/token", "excess"]
    assert dense.startswith("dense ")
    assert router.startswith("router ")
    assert " ± " in router
    assert dial.startswith("router (dial of 0.25) ")
    assert rest[-1] == str(tmp_path / "out")
    assert "router at 0.25, seed 1" in first.stderr
    assert "no plot: it needs matplotlib" in first.stderr

    second = _compare(places, *asked)
    assert second.stdout == first.stdout
    assert "seed" not in second.stderr
    quiet = _compare(places, *asked, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (first.stdout, "")


WRONG = {
    "a misspelt method": (("--methods", "dense,roter"), "did you mean router?"),
    "healing what is healed": (("--methods", "joint+lora"), "+lora after dense, router"),
    "an unknown recipe of a method": (("--methods", "router@papper"), "paper or default"),
    "an unknown recipe": (("--methods", "router", "--recipe", "papper"), "paper or default"),
    "a misspelt setting": (("--methods", "router:router.inptu=x"), "router.input"),
    "a budget in percent": (("--methods", "dense", "--sparsity", "25"), "0 to 0.95"),
    "a budget that is no number": (("--methods", "dense", "--sparsity", "half"), "--sparsity"),
    "a dial in percent": (("--methods", "router", "--dial", "25"), "0 to 0.95"),
    "a seed that is no number": (("--methods", "router", "--seeds", "a,b"), "--seeds"),
    "a seed that is not whole": (("--methods", "router", "--seeds", "0.5"), "--seeds"),
    "a seed that is nan": (("--methods", "router", "--seeds", "nan"), "--seeds"),
    "a seed below zero": (("--methods", "router", "--seeds", "-1"), "seed"),
    "three numbers of steps": (("--methods", "router", "--steps", "1,2,3"), "1,2,3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_in_status_two_and_one_line(
    name: str, places: tuple[object, ...], tmp_path: Path
) -> None:
    arguments, words = WRONG[name]
    finished = _compare(places, *arguments)
    assert (finished.status, finished.stdout) == (2, ""), finished.stderr
    (line,) = finished.stderr.splitlines()
    assert line.startswith("skipgpt: ")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_not_there_ends_in_status_one(
    places: tuple[object, ...], tmp_path: Path
) -> None:
    finished = _compare((places[0], "no-base", *places[2:]), "--methods", "dense")
    assert (finished.status, finished.stdout) == (1, ""), finished.stderr
    (line,) = finished.stderr.splitlines()
    assert "no-base" in line
