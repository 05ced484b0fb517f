"""`skipgpt report`, as a script sees it."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

import pytest
from tokenizers import normalizers

from command import skipgpt
from runs import make_checkpoint, shared_checkpoint, write_documents
from tiny import byte_tokenizer, tiny_base


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("text"), count=4)


@functools.cache
def measured(text: Path) -> dict:
    done = skipgpt("report", shared_checkpoint(), "--data", text, "--json", "-q")
    assert done.status == 0, done.stderr
    assert done.stderr == "rows of 256 tokens are longer than the model's context: cut to 128\n"
    return json.loads(done.stdout)


def another_checkpoint(folder: Path, *, normalizer: object = None, calibrated: bool = True) -> Path:
    """Of a deeper base of another family, whose tokenizer may change the text."""
    tiny_base("gpt2", num_hidden_layers=4).save_pretrained(folder / "base")
    tokenizer = byte_tokenizer()
    if normalizer:
        tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.save_pretrained(folder / "base")
    make_checkpoint(folder / "base", folder / "other", calibrated=calibrated)
    return folder / "other"


def test_loss_and_sparsity_are_those_of_eval(text: Path) -> None:
    done = skipgpt("eval", shared_checkpoint(), "--text", text, "--json", "-q")
    evaluated = json.loads(done.stdout)
    report = measured(text)
    assert report["routed"]["sparsity"] == evaluated["sparsity"]
    for key in ("nll_per_token", "perplexity", "tokens", "closeness"):
        assert report["routed"][key] == evaluated[key]
    shown = skipgpt(
        "report", shared_checkpoint(), "--data", text, "--json", "-q", "--sparsity", 0.5
    )
    half = skipgpt("eval", shared_checkpoint(), "--text", text, "--json", "-q", "--sparsity", 0.5)
    assert json.loads(shown.stdout)["routed"]["sparsity"] == json.loads(half.stdout)["sparsity"]


def test_the_lines_for_people_are_those_of_eval(text: Path, tmp_path: Path) -> None:
    done = skipgpt("report", shared_checkpoint(), "--data", text, folder=tmp_path)
    line, closeness, dense, *_, path = done.stdout.splitlines()
    evaluated = skipgpt("eval", shared_checkpoint(), "--text", text).stdout
    assert evaluated.startswith(f"{line}\n{closeness}\n")
    assert dense == f"dense: {measured(text)['dense']['nll_per_token']:.4f} nats per token"
    assert path == "report.html"
    assert (tmp_path / path).read_text().startswith("<!doctype html>")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_dense_loss_is_that_of_the_base_without_lora(text: Path, tmp_path: Path) -> None:
    make_checkpoint(shared_checkpoint().parent / "base", tmp_path / "plain")
    done = skipgpt(
        *("eval", tmp_path / "plain", "--text", text, "--json", "-q", "--execution", "dense")
    )
    dense = json.loads(done.stdout)["nll_per_token"]
    assert measured(text)["dense"]["nll_per_token"] == pytest.approx(dense, abs=1e-6)
    assert measured(text)["dial"][0]["nll_per_token"] != pytest.approx(dense, abs=1e-6)


def test_the_dial_reaches_as_far_as_the_curve(text: Path) -> None:
    asked = [stop["asked"] for stop in measured(text)["dial"]]
    assert asked == [0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert measured(text)["at"] == 3
    shares = [stop["sparsity"]["module"] for stop in measured(text)["dial"]]
    assert shares == sorted(shares)


def test_tasks_are_scored_along_the_dial(text: Path, tmp_path: Path) -> None:
    items = [
        {"query": f"Question: {n}?", "choices": [str(n), "cats"], "gold": n % 2} for n in range(6)
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, items)))
    asked = ("--tasks", "quiz@1", "--task-dir", tmp_path, "--limit", 4)
    page = tmp_path / "a.html"
    arguments = ("report", shared_checkpoint(), "--data", text, "--max-tokens", 64, "-o", page)
    done = skipgpt(*arguments, "--json", "-q", *asked)
    assert done.status == 0, done.stderr
    table = json.loads(done.stdout)["tables"]["stress"]
    place = table["columns"].index("quiz")
    scores = {row[0]: row[place] for row in table["rows"]}
    assert list(scores) == ["dense", 0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    evaluated = skipgpt("eval", shared_checkpoint(), *asked, "--sparsity", 0.5, "--json", "-q")
    (task,) = json.loads(evaluated.stdout)["tasks"]
    assert scores["dense"] == task["dense"]["value"]
    assert scores[0.5] == task["sparse"]["value"]
    assert any("quiz keeps" in finding for finding in table["findings"])
    assert "quiz" in page.read_text()


def test_tasks_are_checked_before_the_text_is_read(text: Path, tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_text("")
    arguments = ("report", shared_checkpoint(), "--data", "gone.txt", "--json")
    done = skipgpt(*arguments, "--tasks", "quiz", "--task-dir", tmp_path)
    assert (done.status, "no item in" in done.stderr) == (1, True)
    done = skipgpt(*arguments, "--task-dir", tmp_path)
    assert (done.status, "got --task-dir; expected --tasks" in done.stderr) == (2, True)


def test_every_form_is_written_where_asked(text: Path, tmp_path: Path) -> None:
    for name, start in (
        ("a.html", b"<!doctype html>"),
        ("deep/er/a.md", b"# base on stories.jsonl"),
        ("a.json", b"{"),
        ("a.svg", b"<?xml"),
    ):
        done = skipgpt("report", shared_checkpoint(), "--data", text, "-o", tmp_path / name, "-q")
        assert done.status == 0, done.stderr
        assert (tmp_path / name).read_bytes().startswith(start)
        assert done.stdout.splitlines()[-1] == str(tmp_path / name)
    plain = json.loads((tmp_path / "a.json").read_text())
    assert {**plain, "facts": 0} == {**measured(text), "facts": 0}


def test_json_alone_writes_no_file(text: Path, tmp_path: Path) -> None:
    done = skipgpt("report", shared_checkpoint(), "--data", text, "--json", folder=tmp_path)
    assert json.loads(done.stdout)["text"]["tokens"] > 0
    assert list(tmp_path.iterdir()) == []


def test_markup_in_a_text_stays_text(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)> & \u2028 <!-- 'x' \"y\" "
    (tmp_path / "<b>.txt").write_text(hostile * 3, encoding="utf-8")
    done = skipgpt(
        *("report", shared_checkpoint(), "--data", tmp_path / "<b>.txt", "-o", tmp_path / "a.html")
    )
    assert done.status == 0, done.stderr
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert "<b>.txt" not in page
    assert page.count("</script>") == page.count("<script") == 2
    assert done.stderr.count("does not reproduce the text") == 0


def test_a_text_longer_than_the_context_is_windowed_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("many words. " * 40)
    done = skipgpt(
        *("report", shared_checkpoint(), "--data", tmp_path / "long.txt", "--block-size", 512),
        *("-o", tmp_path / "a.html"),
    )
    said = "longer than the 128 tokens that the model reads at once: it is read in windows of 128"
    assert said in done.stderr
    assert said in (tmp_path / "a.html").read_text()


def test_the_beginning_is_enough_and_that_is_said(text: Path, tmp_path: Path) -> None:
    done = skipgpt(
        *("report", shared_checkpoint(), "--data", text, "--max-tokens", 50),
        *("-o", tmp_path / "a.json"),
    )
    assert "the first 50 tokens" in done.stderr
    plain = json.loads((tmp_path / "a.json").read_text())
    assert plain["text"]["tokens"] == 50
    assert plain["facts"]["read"] == "the first 50 tokens"


def test_a_checkpoint_without_calibration_has_no_dial_and_that_is_said(
    text: Path, tmp_path: Path
) -> None:
    folder = another_checkpoint(tmp_path, calibrated=False)
    done = skipgpt("report", folder, "--data", text, "-o", tmp_path / "a.html")
    assert done.status == 0, done.stderr
    assert "not calibrated" in done.stderr
    page = (tmp_path / "a.html").read_text()
    assert "not calibrated" in page
    assert 'type="range"' not in page
    for more in (("--sparsity", 0.5), ("--tasks", "quiz")):
        done = skipgpt("report", folder, "--data", text, *more, "-o", tmp_path / "b.html")
        assert (done.status, "never calibrated" in done.stderr) == (2, True)


def test_a_tokenizer_that_changes_the_text_is_found_out(tmp_path: Path) -> None:
    folder = another_checkpoint(tmp_path, normalizer=normalizers.Lowercase())
    (tmp_path / "a.txt").write_text("Some Words With Capitals")
    done = skipgpt("report", folder, "--data", tmp_path / "a.txt", "-o", tmp_path / "a.html")
    assert done.status == 0, done.stderr
    said = "does not reproduce the text exactly"
    assert said in done.stderr
    assert said in (tmp_path / "a.html").read_text()


def test_checkpoints_of_unlike_bases_stand_side_by_side(text: Path, tmp_path: Path) -> None:
    other = another_checkpoint(tmp_path)
    done = skipgpt(
        *("report", shared_checkpoint(), other, "--data", text, "--json", "-o", tmp_path / "a.html")
    )
    assert done.status == 0, done.stderr
    plain = json.loads(done.stdout)
    assert list(plain["reports"]) == ["checkpoint", "other"]
    assert [report["layers"] for report in plain["reports"].values()] == [3, 4]
    assert plain["reports"]["checkpoint"]["routed"] == measured(text)["routed"]
    assert list(plain["tables"]) == ["transfer", "depth"]
    assert "checkpoint and other on stories.jsonl" in (tmp_path / "a.html").read_text()


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    text: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file" / "a.html", tmp_path):
        done = skipgpt(
            "report", "no/such/checkpoint", "--data", text, "-o", out, "--format", "html"
        )
        assert done.status == 1
        assert f"writing to {tmp_path}" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_pipe_in_place_of_a_file_is_refused_and_stays(text: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "link.html").symlink_to("pipe.html")
    (tmp_path / "loop.html").symlink_to("loop.html")
    for name in ("pipe.html", "link.html", "loop.html"):
        done = skipgpt("report", "no/such/checkpoint", "--data", text, "-o", tmp_path / name)
        assert done.status == 1
        assert "got a device, a pipe or a link to itself; expected a file" in done.stderr
    assert (tmp_path / "pipe.html").is_fifo()
    assert (tmp_path / "link.html").is_symlink()


def test_a_link_goes_on_to_lead_to_the_file_that_is_written(text: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old.json").write_text("old")
    for name, target in (("a.json", "there/old.json"), ("b.json", "there/new.json")):
        (tmp_path / name).symlink_to(target)
        done = skipgpt("report", shared_checkpoint(), "--data", text, "-o", tmp_path / name, "-q")
        assert done.status == 0, done.stderr
        assert (tmp_path / name).is_symlink()
        assert json.loads((tmp_path / target).read_text())["text"]["tokens"] > 0
    assert sorted(each.name for each in (tmp_path / "there").iterdir()) == ["new.json", "old.json"]


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n")
    for name, said in (("empty.txt", "an empty file"), ("blank.txt", "without text")):
        done = skipgpt("report", shared_checkpoint(), "--data", tmp_path / name, folder=tmp_path)
        assert done.status == 1
        assert said in done.stderr
    assert not (tmp_path / "report.html").exists()


def _without_matplotlib() -> None:
    sys.modules["matplotlib"] = None  # type: ignore[assignment]


def test_a_picture_without_the_extra_prints_the_install_line(text: Path, tmp_path: Path) -> None:
    done = skipgpt(
        *("report", shared_checkpoint(), "--data", text, "-o", tmp_path / "a.png"),
        before=_without_matplotlib,
    )
    assert done.status == 1
    assert "pip install 'skipgpt[report]'" in done.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report"], "neither a checkpoint nor a run"),
        (["report", "a", "--run", "b"], "a checkpoint and a run"),
        (["report", "a"], "give --data SRC"),
        (["report", "a", "--data", "b", "--format", "pdf"], "html, md, json, png, svg"),
        (["report", "a", "--data", "b", "-o", "c.docx"], "html, md, json, png, svg"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = skipgpt(*arguments, folder=tmp_path)
    assert done.status == 2
    assert said in done.stderr
    assert done.stdout == ""
