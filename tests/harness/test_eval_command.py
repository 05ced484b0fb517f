"""`skipgpt eval` of tasks and forms, and the harness's own command, as a script sees them."""

from __future__ import annotations

import functools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from command import Finished, skipgpt
from harness_index import index_file, know_the_index
from local_data import write_items
from runs import make_checkpoint, shared_checkpoint, write_documents


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    write_items(tmp_path / "tasks")
    return tmp_path / "tasks"


def evaluated(*arguments: object, **options: Any) -> Finished:
    return skipgpt("eval", shared_checkpoint(), *arguments, **options)


def test_tasks_print_dense_beside_sparse_as_one_document(tasks: Path, tmp_path: Path) -> None:
    arguments = ("--tasks", "numbers@1", "--task-dir", tasks, "--sparsity", 0.3, "--limit", 5)
    finished = evaluated(*arguments, "--json", "--quiet", "--use-cache", tmp_path / "cache")
    assert (finished.status, finished.stderr) == (0, "")
    document = json.loads(finished.stdout)
    (task,) = document["tasks"]
    assert (task["task"], task["shots"], task["items"], task["metric"]) == ("numbers", 1, 5, "acc")
    assert {"value", "stderr", "metrics"} == task["dense"].keys() == task["sparse"].keys()
    assert set(document["sparsity"]) == {"module", "attn", "mlp", "params", "flops"}
    assert 0 < document["sparsity"]["module"] < 1
    assert document["asked_sparsity"] == 0.3
    assert list((tmp_path / "cache").glob("*.db"))


def test_tasks_for_people_are_a_table(tasks: Path) -> None:
    finished = evaluated("--tasks", "numbers", "--task-dir", tasks)
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ["task", "shots", "items", "metric", "dense", "sparse", "kept"]
    assert lines[1].startswith("numbers")
    assert lines[-1].startswith("measured sparsity: module ")
    assert "sparse numbers: acc " in finished.stderr


@pytest.mark.parametrize("form", ["blocks", "fixed", "sliding", "bits"])
def test_every_form_keeps_the_promised_keys_and_says_what_is_read(
    form: str, tmp_path: Path
) -> None:
    text = write_documents(tmp_path, count=8)
    window = ("--block-size", 32) if form == "blocks" else ("--window", 32)
    finished = evaluated("--text", text, "--form", form, *window, "--json")
    document = json.loads(finished.stdout)
    assert {"perplexity", "nll_per_token", "tokens", "sparsity", "cache"} <= document.keys()
    assert (document["form"], document["window"]) == (form, 32)
    assert ("bits_per_byte" in document) == (form == "bits")
    assert document.get("stride") == (16 if form == "sliding" else None)
    assert f"form: {form}, rows of 32 tokens" in finished.stderr


def test_a_corpus_from_a_file_is_labelled(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text("A line of words .\n" * 40)
    finished = evaluated(
        "--corpus", "wikitext2", "--text", path, "--window", 64, "--max-tokens", 400, "--json"
    )
    document = json.loads(finished.stdout)
    assert (document["form"], document["source"]) == (
        "fixed",
        "wikitext2, local file: wiki.test.raw",
    )
    assert document["tokens"] == 400 // 64 * 63


def test_a_remainder_shorter_than_a_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("x" * 99)  # and the token before it
    document = json.loads(evaluated("--text", path, "--block-size", 64, "--json").stdout)
    assert document["tokens"] == 63 + 35


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("blocks", "reading the first 100 tokens in 4 rows"),
        ("fixed", "reading 96 tokens of the first 100 in 3 rows"),
        ("sliding", "reading 180 tokens of the first 100 in 6 rows"),
    ],
)
def test_where_the_beginning_is_read_that_is_said(form: str, said: str, tmp_path: Path) -> None:
    text = write_documents(tmp_path, count=8)
    window = "--block-size" if form == "blocks" else "--window"
    cut = ("--text", text, "--form", form, window, 32)
    assert said in evaluated(*cut, "--max-tokens", 100).stderr
    assert "the first" not in evaluated(*cut, "--max-tokens", 100_000).stderr


OF_TASKS = ("--task-dir", "--limit", "--use-cache")
OF_TEXT = ("--form", "--window", "--stride", "--max-tokens", "--block-size", "--max-documents")


@pytest.mark.parametrize("option", [*OF_TASKS, *OF_TEXT])
def test_an_option_of_the_other_kind_is_refused_by_name(option: str) -> None:
    what = ("--text", "README.md") if option in OF_TASKS else ("--tasks", "piqa")
    finished = evaluated(*what, option, "2")
    assert (finished.status, finished.stdout) == (2, "")
    assert f"measuring on {what[0][2:]}: got {option};" in finished.stderr


def test_a_text_longer_than_the_context_is_cut_and_said(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("word " * 100)
    finished = evaluated("--text", path)
    assert finished.status == 0
    assert "rows of 256 tokens are longer than the model's context: cut to 128" in finished.stderr


def test_a_checkpoint_without_calibration_is_measured_as_it_is(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "c", calibrated=False)
    text = write_documents(tmp_path, count=4)
    finished = skipgpt("eval", tmp_path / "c", "--text", text)
    assert finished.status == 0
    assert "never calibrated: a module runs where its router's margin" in finished.stderr
    refused = skipgpt("eval", tmp_path / "c", "--text", text, "--sparsity", 0.3)
    assert refused.status == 2
    assert "never calibrated" in refused.stderr


WRONG = {
    "neither text nor tasks": ((), 2, "--text or --corpus, or else --tasks or --suite"),
    "text and tasks": (("--text", "README.md", "--tasks", "piqa"), 2, "text and tasks"),
    "an unknown suite": (("--suite", "papper"), 2, "paper or zero-shot"),
    "an unknown task": (("--tasks", "nmbers", "--task-dir", "TASKS"), 2, "nearest are numbers"),
    "more shots than items": (("--tasks", "numbers@9", "--task-dir", "TASKS"), 2, "at most 5"),
    "a file as cache": (("--tasks", "piqa", "--use-cache", "EMPTY"), 1, "expected a folder"),
    "a cache below a file": (("--tasks", "piqa", "--use-cache", "EMPTY/c"), 1, "Not a directory"),
    "a damaged cache": (
        ("--tasks", "piqa", "--use-cache", "CACHE"),
        1,
        "answers-0.db: got no data",
    ),
    "no folder of tasks": (("--tasks", "piqa", "--task-dir", "gone"), 1, "'gone', no folder"),
    "an unknown execution": (("--tasks", "piqa", "--execution", "fast"), 2, "'fast'"),
    "a task of the hub, offline": (("--tasks", "piqa"), 1, "--task-dir"),
    "a corpus of the hub, offline": (("--corpus", "wikitext2"), 1, "--text"),
    "an unknown corpus": (("--corpus", "c4"), 2, "wikitext2 or ptb"),
    "an unknown form": (("--text", "TEXT", "--form", "rolling"), 2, "blocks, fixed, sliding"),
    "an empty text": (("--text", "EMPTY", "--form", "bits"), 1, "empty.txt"),
}
OF_THE_INDEX = {"an unknown task", "a task of the hub, offline"}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_a_status(name: str, tasks: Path, tmp_path: Path) -> None:
    arguments, status, words = WRONG[name]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "answers-0.db").write_text("no database")
    places = {
        "CACHE": tmp_path,
        "TASKS": tasks,
        "TEXT": write_documents(tmp_path, count=4),
        "EMPTY": tmp_path / "empty.txt",
        "EMPTY/c": tmp_path / "empty.txt" / "c",
    }
    known = functools.partial(know_the_index, index_file()) if name in OF_THE_INDEX else None
    given = (places.get(a, a) for a in arguments)
    finished = evaluated(*given, folder=tmp_path, before=known)
    assert (finished.status, finished.stdout) == (status, ""), finished.stderr
    assert words in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def _without_the_harness() -> None:
    sys.modules["lm_eval"] = None  # type: ignore[assignment]


def test_without_the_extra_the_install_line_is_printed() -> None:
    finished = evaluated("--tasks", "piqa", before=_without_the_harness)
    assert finished.status == 1
    assert finished.stderr.rstrip().endswith("run: pip install 'skipgpt[eval]'")


def test_an_item_that_does_not_fit_the_model_is_said(tasks: Path) -> None:
    long = [{"query": "Question: x", "choices": ["y" * 200, "z"], "gold": 0}]
    write_items(tasks, "long", long)
    finished = evaluated("--tasks", "long", "--task-dir", tasks)
    assert finished.status == 1
    assert "got 201 tokens after a context of 19; expected 1 to 128" in finished.stderr
    write_items(tasks, "wide", [{"query": "q" * 300, "choices": ["y", "z"], "gold": 0}])
    finished = evaluated("--tasks", "wide", "--task-dir", tasks)
    assert finished.status == 0
    assert "2 of 2 requests are longer than the model's context of 128" in finished.stderr
    assert finished.stdout.splitlines()[-1] == "2 requests were longer than the model's context"


def _of_the_harness(arguments: list[str], index: Path) -> None:
    """Run `python -m skipgpt.evaluation.harness`, and not our command."""
    know_the_index(index)
    sys.argv = ["harness", *arguments]
    runpy.run_module("skipgpt.evaluation.harness", run_name="__main__")
    sys.exit()


def test_the_command_of_the_harness_knows_the_model(tasks: Path, tmp_path: Path) -> None:
    (tasks / "numbers.yaml").write_text(
        "task: spelled\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tasks / 'numbers.jsonl'}}}}}\n"
        'doc_to_text: "{{query}}"\ndoc_to_choice: choices\ndoc_to_target: gold\n'
    )
    line = (
        f"--model skipgpt --tasks spelled --include_path {tasks} "
        f"--model_args pretrained={shared_checkpoint()},sparsity=0.5 --output_path {tmp_path}/out "
        f"--use_cache {tmp_path}/answers"
    )
    done = skipgpt(before=functools.partial(_of_the_harness, line.split(), index_file()))
    assert done.status == 0, done.stderr
    assert "|spelled|" in done.stdout
    (path,) = (tmp_path / "out").rglob("results*.json")
    found = json.loads(path.read_text())
    mine = evaluated(
        *("--tasks", "spelled", "--task-dir", tasks, "--sparsity", 0.5, "--json", "--quiet")
    )
    ours = json.loads(mine.stdout)
    assert found["results"]["spelled"]["acc,none"] == ours["tasks"][0]["sparse"]["value"]
    assert found["config"]["sparsity"] == pytest.approx(ours["sparsity"])
