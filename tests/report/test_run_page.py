import json
from pathlib import Path

import pytest

from command import skipgpt
from skipgpt.errors import CheckpointError
from skipgpt.report.run_page import run_page, run_summary


def _run(folder: Path, finished: list[str], steps: int) -> Path:
    config = {
        "stages": ["router", "lora"],
        "target_sparsity": 0.25,
        "router_stage": {"steps": 40},
        "lora_stage": {"steps": 20},
    }
    run = {"base": "nano", "data": ["<b>stdlib"], "config": config, "finished": finished}
    (folder / "run.json").write_text(json.dumps(run))
    lines = [
        json.dumps({"stage": "router", "step": n, "lm_loss": 3.0 - n / 100, "sparsity": n / 200})
        for n in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "rou')
    return folder


def test_a_run_that_goes_on_says_how_far_it_is_and_reads_itself_again(tmp_path: Path) -> None:
    summary = run_summary(_run(tmp_path, [], 12))
    assert summary["stages"]["router"]["steps"] == 12
    assert summary["stages"]["router"]["of"] == 40
    assert summary["stages"]["router"]["last"]["sparsity"] == 0.06
    assert summary["stages"]["lora"] == {"steps": 0, "of": 20, "last": None}
    assert not summary["finished"]
    page = run_page(tmp_path)
    assert "12 of 40 steps; last: loss 2.88, sparsity 0.06" in page
    assert 'http-equiv="refresh"' in page
    assert "<b>stdlib" not in page
    assert page.count("<svg") == 2


def test_a_run_that_is_over_does_not(tmp_path: Path) -> None:
    page = run_page(_run(tmp_path, ["router", "lora"], 40))
    assert run_summary(tmp_path)["finished"]
    assert 'http-equiv="refresh"' not in page
    assert "The run is over." in page


def test_before_the_first_step_there_is_nothing_to_draw(tmp_path: Path) -> None:
    _run(tmp_path, [], 0)
    (tmp_path / "metrics.jsonl").unlink()
    assert "No step is logged yet" in run_page(tmp_path)


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="reading the run"):
        run_page(tmp_path / name)


def test_the_command_writes_the_page_and_prints_the_numbers(tmp_path: Path) -> None:
    run, page = _run(tmp_path, [], 3), tmp_path / "run.html"
    done = skipgpt("report", "--run", run, "-o", page, "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["stages"]["router"]["steps"] == 3
    assert "Stage router" in page.read_text()
