r"""Local tasks of a folder: YAML of the harness with local data, and plain JSONL.

A JSONL file is a multiple-choice task of its name, scored as the harness scores such tasks:

    {"query": "Question: …", "choices": ["…", "…"], "gold": 0}      one item per line
    {"ctx_a": …, "ctx_b": …, "activity_label": …, "endings": […], "label": 0}      HellaSwag's own

A query that contains "Question:" is followed by "\nAnswer:" and each choice; any other query by its
choices directly. HellaSwag's fields are cleaned as the harness cleans them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from skipgpt.data.rows import json_rows
from skipgpt.errors import DataError

HELLASWAG = {"ctx_a", "ctx_b", "activity_label", "endings", "label"}
_STRUCTURE = ("tag", "group", "task_list")
_EXAMPLES = {"training_split", "validation_split", "fewshot_split", "fewshot_config"}
"""Settings that say where few-shot examples come from."""


class LocalTasks(dict[str, Path]):
    """The files of a folder's tasks by name: YAML, at any depth, and JSONL.

    Attributes:
        broken: by path, why a YAML file could not be read.

    Raises:
        DataError: there is no such folder.

    Example:
        LocalTasks(Path("tasks")).load("my_task")
    """

    def __init__(self, folder: Path) -> None:
        from lm_eval.tasks._yaml_loader import load_yaml

        if not folder.is_dir():
            raise DataError(
                "reading the task files", got=f"{str(folder)!r}, no folder", expected="a folder"
            )
        super().__init__({path.stem: path for path in sorted(folder.glob("*.jsonl"))})
        self.broken: dict[Path, str] = {}
        for path in sorted(folder.rglob("*.yaml")):
            try:
                config = load_yaml(path, resolve_func=False)
            except Exception as error:  # from YAML, files or the harness
                self.broken[path] = " ".join(str(error).split())
            else:
                if isinstance(config.get("task"), str) and "class" not in config:
                    self[config["task"]] = path

    def broken_of(self, names: Collection[str] | None = None) -> str:
        """Return why files could not be read: those of these names, or all."""
        return "; ".join(
            f"{path.name}: {why}"
            for path, why in self.broken.items()
            if names is None or path.stem in names
        )

    def load(self, name: str) -> Any:
        """Load the harness's task of this name; a DataError if a line of JSONL is not an item."""
        from lm_eval.api.task import ConfigurableTask

        path = self[name]
        config = _of_jsonl(name, path) if path.suffix == ".jsonl" else _of_yaml(path)
        if "test_split" in config and not _EXAMPLES & config.keys():
            # The harness would draw few-shot examples from it anyway, the item itself among them.
            config["fewshot_split"] = config["test_split"]
        return ConfigurableTask(config=config)


def _of_yaml(path: Path) -> dict[str, Any]:
    """Return a task's settings; its data files are relative to the folder of the task file."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = {k: v for k, v in load_yaml(path).items() if k not in _STRUCTURE}
    options = dict(config.get("dataset_kwargs") or {})
    if "data_files" in options:
        # A data set on the hub has files of its own.
        packaged = "/" not in str(config.get("dataset_path"))
        options["data_files"] = _from(path.parent, options["data_files"], packaged)
        config["dataset_kwargs"] = options
    return config


def _from(folder: Path, files: Any, packaged: bool) -> Any:
    if isinstance(files, dict):
        return {split: _from(folder, each, packaged) for split, each in files.items()}
    if isinstance(files, list):
        return [_from(folder, each, packaged) for each in files]
    here = folder / str(files)
    elsewhere = not packaged or "://" in str(files) or Path(str(files)).exists()
    return files if elsewhere and not here.exists() else str(here)


def _of_jsonl(name: str, path: Path) -> dict[str, Any]:
    """Return the settings of a task whose only split is a JSONL file."""
    items = [_item(row, number, path) for number, row in json_rows(path)]
    if not items:
        raise DataError(f"loading the task {name}", got=f"no item in {path}", expected="items")

    def splits(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(items)}

    return {
        "task": name,
        "custom_dataset": splits,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def _item(row: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    """Return a line as `query`, `choices` and `gold`."""
    if row.keys() >= HELLASWAG:
        row = _of_hellaswag(row)
    query, choices, gold = row.get("query"), row.get("choices"), row.get("gold")
    fits = (
        isinstance(query, str)
        and isinstance(choices, list)
        and len(choices) > 1
        and all(isinstance(choice, str) and choice for choice in choices)
        and isinstance(gold, int)
        and not isinstance(gold, bool)
        and 0 <= gold < len(choices)
    )
    if not fits:
        raise DataError(
            f"reading the task file {path}",
            got=f"line {number} with the fields {', '.join(row) or '(none)'}",
            expected="query (text), choices (two or more texts) and gold (the index of one)",
        )
    asked = str(query).rstrip()
    return {
        "query": f"{asked}\nAnswer:" if "Question:" in asked else asked,
        "choices": choices,
        "gold": gold,
    }


def _of_hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.tasks.hellaswag.utils import preprocess

    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": preprocess(context),
        "choices": [preprocess(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    }
