import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from command import skipgpt
from skipgpt import cli
from skipgpt.errors import CheckpointError
from skipgpt.report import pages
from skipgpt.report.pages.run_page import run_in, run_page, run_summary
from skipgpt.report.run_files import read_run


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
    summary = run_summary(run_in(_run(tmp_path, [], 12)))
    assert summary["stages"]["router"]["steps"] == 12
    assert summary["stages"]["router"]["of"] == 40
    assert summary["stages"]["router"]["last"]["sparsity"] == 0.06
    assert summary["stages"]["lora"] == {
        "steps": 0, "of": 20, "finished": False, "last": None, "warnings": []
    }  # fmt: skip
    assert not summary["finished"]
    page = run_page(run_in(tmp_path))
    assert "12 of 40 steps; last: loss 2.88, sparsity 0.06" in page
    assert 'http-equiv="refresh"' in page
    assert "<b>stdlib" not in page
    assert page.count("<svg") == 2  # what was not logged is not drawn
    assert "Nothing is judged before a stage is half over." in page


def test_a_run_that_is_over_does_not(tmp_path: Path) -> None:
    page = run_page(run_in(_run(tmp_path, ["router", "lora"], 40)))
    assert run_summary(run_in(tmp_path))["finished"]
    assert 'http-equiv="refresh"' not in page
    assert "The run is over." in page


def test_of_stage_fit_which_takes_no_steps_it_says_whether_it_is_finished(tmp_path: Path) -> None:
    _run(tmp_path, [], 0)
    run = json.loads((tmp_path / "run.json").read_text())
    run["config"] |= {"stages": ["fit", "router", "lora"], "fit_stage": {"tokens": 32768}}
    for finished, said in (([], "not finished"), (["fit"], "finished")):
        (tmp_path / "run.json").write_text(json.dumps(run | {"finished": finished}))
        stage = run_summary(run_in(tmp_path))["stages"]["fit"]
        assert (stage["steps"], stage["of"], stage["finished"]) == (None, None, bool(finished))
        page = run_page(run_in(tmp_path))
        assert f"<dt>Stage fit</dt><dd>{said}</dd>" in page
        assert "<dt>Stage router</dt><dd>0 of 40 steps</dd>" in page
        assert "Nothing is judged before a stage is half over." in page
    run["config"]["stages"] = ["fit"]
    (tmp_path / "run.json").write_text(json.dumps(run | {"finished": ["fit"]}))
    assert "No warnings." in run_page(run_in(tmp_path))


def test_keep_rates_are_drawn_by_layer_and_step(tmp_path: Path) -> None:
    _run(tmp_path, ["router", "lora"], 0)
    keep = {"attn": [1.0, 0.25, 0.0], "mlp": [0.5, 0.5, 1.0]}
    lines = [
        {"stage": "router", "step": n, "loss": 3, "lm_loss": 3, "sparsity": 0.25, "entropy": 0.5,
         "keep": keep}
        for n in (10, 20, 30, 40)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = run_page(run_in(tmp_path))
    cells = page.split('<g class="cells attn">')[-1].split("</g>")[0]
    assert cells.count("<path") == 2 * 4  # of three layers one runs nothing
    assert "newest: layer 1 100%, layer 2 25%, layer 3 0%" in page
    assert "No warnings." in page


def test_a_failing_run_is_warned_of_with_what_to_do(tmp_path: Path) -> None:
    _run(tmp_path, ["router", "lora"], 0)
    run = json.loads((tmp_path / "run.json").read_text())
    run["held_out"] = {"dense": {"nll_per_token": 2.0}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    lines = [
        json.dumps({"stage": "router", "step": step, "lm_loss": 6.0, "sparsity": 0.1}) + "\n"
        for step in (38, 39, 40)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    warnings = run_summary(run_in(tmp_path))["stages"]["router"]["warnings"]
    assert len(warnings) == 2
    assert "54.6 times that of the dense model" in warnings[0]
    assert "sparsity is 10.0%, 25% was asked" in warnings[1]
    page = run_page(run_in(tmp_path))
    assert page.count('<p class="warning">Stage router') == 2
    assert "router_stage.alpha" in page


def test_what_was_measured_on_held_out_text_is_said_and_a_miss_is_warned_of(
    tmp_path: Path,
) -> None:
    _run(tmp_path, ["router"], 0)
    assert "What did it come to?" not in run_page(run_in(tmp_path))
    run = json.loads((tmp_path / "run.json").read_text())
    run["held_out"] = {
        "dense": {"nll_per_token": 2.0, "tokens": 2032, "sparsity": {"module": 0.0}},
        "router": {"nll_per_token": 2.5, "tokens": 2032, "sparsity": {"module": 0.161}},
        "lora": {
            "nll_per_token": 1.9,
            "tokens": 2032,
            "sparsity": {"module": 0.24},
            "closeness": {"kl_per_token": 0.25, "agreement": 0.931, "dense": "base"},
        },
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    summary, page = run_summary(run_in(tmp_path)), run_page(run_in(tmp_path))
    assert summary["held_out"] == run["held_out"]
    assert "On 2,032 tokens of held-out text." in page
    assert "2.500 nats per token, +0.500 to dense; skipped: module 16.1%" in page
    close = "KL to dense 0.250 nats per token, top-1 agreement 93.1%"
    shown = f"1.900 nats per token, \N{MINUS SIGN}0.100 to dense, {close}; skipped: module 24.0%"
    assert shown in page
    (warning,) = summary["stages"]["router"]["warnings"]
    assert "routing saves 16.1% of modules, 25% was asked" in warning
    assert "data.calibration_tokens" in page
    assert summary["stages"]["lora"]["warnings"] == []


def test_a_budget_in_time_that_is_missed_is_warned_of_in_time(tmp_path: Path) -> None:
    _run(tmp_path, ["router"], 0)
    run = json.loads((tmp_path / "run.json").read_text())
    run["config"]["budget"] = "time"
    run["held_out"] = {
        "router": {"nll_per_token": 2.5, "tokens": 2032, "sparsity": {"module": 0.25, "time": 0.1}}
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    (warning,) = run_summary(run_in(tmp_path))["stages"]["router"]["warnings"]
    assert "routing saves 10.0% of time, 25% was asked" in warning


def test_before_the_first_step_there_is_nothing_to_draw(tmp_path: Path) -> None:
    _run(tmp_path, [], 0)
    (tmp_path / "metrics.jsonl").unlink()
    assert "No step is logged yet" in run_page(run_in(tmp_path))


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="reading the run"):
        run_in(tmp_path / name)


def test_the_command_writes_the_page_and_prints_the_numbers(tmp_path: Path) -> None:
    run, page = _run(tmp_path, [], 3), tmp_path / "run.html"
    done = skipgpt("report", "--run", run, "-o", page, "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["stages"]["router"]["steps"] == 3
    assert "Stage router" in page.read_text()


def test_the_page_and_the_numbers_are_of_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, steps = tmp_path / "run", itertools.count(3)
    folder.mkdir()

    def going_on(folder: Path) -> dict[str, Any]:
        return read_run(_run(folder, [], next(steps)))

    monkeypatch.setattr(pages.run_page, "read_run", going_on)
    cli.report._of_run(folder, tmp_path / "run.html", "html", True)
    assert json.loads(capsys.readouterr().out)["stages"]["router"]["steps"] == 3
    assert "3 of 40 steps" in (tmp_path / "run.html").read_text()


def test_what_is_read_off_a_text_is_refused_beside_a_run(tmp_path: Path) -> None:
    done = skipgpt("report", "--run", _run(tmp_path, [], 3), "--data", "stdlib", "--sparsity", 0.4)
    assert done.status == 2
    assert "got --data; expected --run alone" in done.stderr
