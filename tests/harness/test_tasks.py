"""Names, suites and task files; what is wrong with them is said."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks.hellaswag.utils import preprocess

from local_data import ITEMS, published_items, write_items
from skipgpt.errors import ConfigError, DataError, MissingExtraError
from skipgpt.evaluation.harness.quiet import require_harness
from skipgpt.evaluation.harness.tasks import SUITES, TaskName, load_tasks, metric_of, named

YAML = """
task: spelled
dataset_path: json
dataset_kwargs: {data_files: {test: items.json}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{asked}}"
doc_to_choice: "{{[right, wrong]}}"
doc_to_target: 0
metric_list: [{metric: acc}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    made = tmp_path / "tasks"
    (made / "deep").mkdir(parents=True)
    return made


def load(folder: Path, *names: str) -> Any:
    loaded = load_tasks([TaskName.parse(name) for name in names], folder)
    return [task for each in loaded for task in each.loaded["tasks"].values()]


def test_a_jsonl_file_is_a_task_of_its_name(folder: Path) -> None:
    write_items(folder)
    (task,) = load(folder, "numbers")
    documents = list(task.eval_docs)
    assert [task.doc_to_text(doc) for doc in documents] == [
        f"{item['query']}\nAnswer:" for item in ITEMS
    ]
    assert [task.doc_to_choice(doc) for doc in documents] == [item["choices"] for item in ITEMS]
    assert [task.doc_to_target(doc) for doc in documents] == [item["gold"] for item in ITEMS]


def test_a_query_that_asks_nothing_is_continued(folder: Path) -> None:
    write_items(folder, items=[{"query": "The cat sat ", "choices": ["on", "in"], "gold": 0}])
    (task,) = load(folder, "numbers")
    assert task.doc_to_text(task.eval_docs[0]) == "The cat sat"


def test_fields_of_hellaswag_are_cleaned_as_the_harness_does(folder: Path) -> None:
    row = {
        "activity_label": "Roof",
        "ctx_a": "A man [header] is  sitting.",
        "ctx_b": "he",
        "endings": ["waits [title] now.", "[step] goes."],
        "label": "1",
    }
    write_items(folder, "hellaswag", [row])
    (task,) = load(folder, "hellaswag")
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == preprocess("Roof: A man [header] is  sitting. He")
    assert task.doc_to_choice(doc) == [preprocess(ending) for ending in row["endings"]]
    assert task.doc_to_target(doc) == 1


def test_published_files_become_the_prompts_that_the_test_words_itself(
    data_folder: Path,
) -> None:
    for name in ("arc_easy", "hellaswag-1k"):
        (task,) = load(data_folder / "eval", name)
        for doc, (prompt, choices, gold) in zip(
            task.eval_docs, published_items(data_folder, name, 50), strict=False
        ):
            assert (task.doc_to_text(doc), task.doc_to_choice(doc)) == (prompt, choices)
            assert task.doc_to_target(doc) == gold


def test_a_yaml_file_finds_its_data_beside_itself(folder: Path) -> None:
    (folder / "deep/spelled.yaml").write_text(YAML)
    (folder / "deep/items.json").write_text(
        json.dumps({"asked": "two and two", "right": "four", "wrong": "five"}) + "\n"
    )
    (task,) = load(folder, "spelled")
    assert task.doc_to_text(task.eval_docs[0]) == "two and two"
    assert task.doc_to_choice(task.eval_docs[0]) == ["four", "five"]


def test_a_local_task_goes_before_one_of_the_harness(folder: Path) -> None:
    write_items(folder, "piqa")
    (task,) = load(folder, "piqa")
    assert len(task.eval_docs) == len(ITEMS)


BAD_ITEMS = {
    "no choices": {"query": "x", "gold": 0},
    "one choice": {"query": "x", "choices": ["a"], "gold": 0},
    "an empty choice": {"query": "x", "choices": ["a", ""], "gold": 0},
    "a gold that is no choice": {"query": "x", "choices": ["a", "b"], "gold": 2},
    "a gold that is a text": {"query": "x", "choices": ["a", "b"], "gold": "0"},
    "a query that is a number": {"query": 1, "choices": ["a", "b"], "gold": 0},
    "other fields": {"question": "x", "answers": ["a", "b"]},
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_line_that_is_no_item_is_named(name: str, folder: Path) -> None:
    write_items(folder, items=[ITEMS[0], BAD_ITEMS[name]])
    with pytest.raises(DataError, match=r"numbers\.jsonl: got line 2 with the fields .*gold \(the"):
        load(folder, "numbers")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: [unclosed", "odd.yaml: while parsing"),
        ("- a\n- list", "odd.yaml: Expected YAML dict"),
        ("include: nowhere.yaml", "odd.yaml: .*nowhere.yaml"),
    ],
)
def test_a_task_file_that_cannot_be_read_is_named(text: str, words: str, folder: Path) -> None:
    (folder / "odd.yaml").write_text(text)
    with pytest.raises(DataError, match=words):
        load(folder, "odd")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("output_type: guessing", "guessing"),
        ("metric_list: [{metirc: acc}]", "metric"),
        ("no_such_setting: 1", "no_such_setting"),
        ("dataset_kwargs: {data_files: {test: gone.json}}", "gone.json"),
    ],
)
def test_a_task_file_with_a_wrong_setting_is_refused(change: str, words: str, folder: Path) -> None:
    key = change.partition(":")[0]
    lines = [line for line in YAML.splitlines() if not line.startswith(f"{key}:")]
    (folder / "spelled.yaml").write_text("\n".join([*lines, change]))
    (folder / "items.json").write_text('{"asked": "x", "right": "a", "wrong": "b"}\n')
    with pytest.raises(DataError, match=f"loading the task spelled: got .*{words}"):
        load(folder, "spelled")


def test_a_task_without_items_is_refused(folder: Path) -> None:
    (folder / "numbers.jsonl").write_text("\n")
    with pytest.raises(DataError, match="got no item in"):
        load(folder, "numbers")
    (folder / "spelled.yaml").write_text(YAML + "process_docs: !function none.none\n")
    (folder / "none.py").write_text("def none(docs):\n    return docs.select([])\n")
    (folder / "items.json").write_text('{"asked": "x", "right": "a", "wrong": "b"}\n')
    with pytest.raises(DataError, match="loading the task spelled: got no item"):
        load(folder, "spelled")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load(tmp_path / "nowhere", "numbers")


@pytest.mark.usefixtures("known_index")
def test_an_unknown_task_is_answered_with_the_nearest_names(folder: Path) -> None:
    write_items(folder, "my_numbers")
    with pytest.raises(ConfigError, match=r"nearest are .*arc_easy"):
        load_tasks([TaskName("arc_eazy")])
    with pytest.raises(ConfigError, match=r"nearest are .*my_numbers"):
        load(folder, "my_nmbers")


@pytest.mark.usefixtures("known_index")
def test_a_broken_file_is_named_beside_an_unknown_task_but_not_blamed(folder: Path) -> None:
    write_items(folder)
    (folder / "odd.yaml").write_text("task: [unclosed")
    with pytest.raises(ConfigError, match=r"got 'nmbers'; .*numbers.*read: odd.yaml: while"):
        load(folder, "nmbers")
    assert load(folder, "numbers")


@pytest.mark.usefixtures("known_index")
def test_the_nearest_names_are_given_once(folder: Path) -> None:
    (folder / "spelled.yaml").write_text(YAML)
    with pytest.raises(ConfigError) as raised:
        load(folder, "speled")
    assert str(raised.value).count("spelled") == 1


def test_a_data_file_that_is_gone_is_looked_for_beside_its_task(folder: Path) -> None:
    (folder / "deep" / "spelled.yaml").write_text(YAML)
    with pytest.raises(DataError, match=re.escape(str(folder / "deep" / "items.json"))):
        load(folder, "spelled")


@pytest.mark.parametrize("shots", [1, 5])
def test_an_item_is_never_a_solved_example_of_itself(shots: int, folder: Path) -> None:
    write_items(folder)
    (loaded,) = load_tasks([TaskName("numbers", shots)], folder)
    loaded.prepare()
    task = loaded.loaded["tasks"]["numbers"]
    for doc in task.eval_docs:
        assert task.fewshot_context(doc, shots).count(doc["query"]) == 1


def test_more_shots_than_items_are_refused(folder: Path) -> None:
    write_items(folder)
    with pytest.raises(ConfigError, match=r"got 6 solved examples of numbers; .* ask for .*@5 or"):
        load(folder, "numbers@6")
    lines = '{"asked": "x", "right": "a", "wrong": "b"}\n{"asked": "y", "right": "a", "wrong": "b"}'
    (folder / "items.json").write_text(lines)
    (folder / "spelled.yaml").write_text(YAML + "num_fewshot: 2\n")
    with pytest.raises(ConfigError, match="got 2 solved examples of spelled; expected at most 1"):
        load(folder, "spelled")
    assert load(folder, "spelled@1")


def test_names_carry_shots() -> None:
    assert named(["piqa", "arc_easy@25"]) == [TaskName("piqa"), TaskName("arc_easy", 25)]
    for text in ("arc_easy@", "arc_easy@few", "@3", ""):
        with pytest.raises(ConfigError, match="as piqa or arc_easy@25"):
            named([text])
    with pytest.raises(ConfigError, match="got piqa twice"):
        named(["piqa", "piqa@5"])
    with pytest.raises(ConfigError, match="got none"):
        named([])


@pytest.mark.usefixtures("known_index")
def test_suites_are_seven_tasks_that_the_harness_has() -> None:
    shots = {task.name: task.shots for task in named([], "paper")}
    assert shots == {
        "boolq": None,
        "piqa": None,
        "hellaswag": 10,
        "winogrande": 5,
        "arc_easy": 25,
        "arc_challenge": 25,
        "openbookqa": None,
    }
    assert {task.name for task in named([], "zero-shot")} == set(shots)
    assert {task.shots for task in named([], "zero-shot")} == {None}
    assert set(shots) <= set(TaskManager().all_tasks)
    with pytest.raises(ConfigError, match="paper or zero-shot"):
        named([], "papper")
    assert set(SUITES) == {"paper", "zero-shot"}


def test_the_metric_of_a_task_is_the_papers() -> None:
    assert metric_of("openbookqa", ["acc", "acc_norm"]) == "acc_norm"
    assert metric_of("hellaswag-1k", ["acc", "acc_norm"]) == "acc_norm"
    assert metric_of("arc_challenge", ["acc", "acc_norm"]) == "acc"
    assert metric_of("gsm8k", ["exact_match"]) == "exact_match"


def test_without_the_extra_the_install_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[eval\]'"):
        require_harness()
