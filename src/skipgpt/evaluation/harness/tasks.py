"""Loads and checks the harness's tasks by the names of tasks and suites."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipgpt.config.checks import check_choice
from skipgpt.errors import ConfigError, DataError, SkipGPTError, in_brief
from skipgpt.evaluation.harness.local import LocalTasks
from skipgpt.evaluation.harness.quiet import quietly
from skipgpt.system.progress import advancing

_PAPER = (
    "boolq",
    "piqa",
    "hellaswag@10",
    "winogrande@5",
    "arc_easy@25",
    "arc_challenge@25",
    "openbookqa",
)
SUITES = {"paper": _PAPER, "zero-shot": tuple(name.partition("@")[0] for name in _PAPER)}
"""The paper's seven tasks: with the shots of its authors' later scripts, and without any."""

NORMALISED = ("hellaswag", "openbookqa")
"""Tasks scored by length-normalised accuracy, as in the paper."""

SHOT_SEED = 1234


@dataclass(frozen=True)
class TaskName:
    """A task and how many few-shot examples precede each item, as in `arc_easy@25`.

    Attributes:
        name: as the harness or a local file has it.
        shots: number of examples; the task's own if None, mostly 0.
    """

    name: str
    shots: int | None = None

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """Parse `name` or `name@shots`.

        Raises:
            ConfigError: the shots are no whole number.

        Example:
            >>> TaskName.parse("arc_easy@25")
            TaskName(name='arc_easy', shots=25)
        """
        name, at, shots = text.strip().partition("@")
        if not name or (at and not shots.isdecimal()):
            raise ConfigError(
                "reading the tasks", got=repr(text), expected="a task, as piqa or arc_easy@25"
            )
        return cls(name, int(shots) if at else None)


@dataclass(frozen=True, eq=False)
class LoadedTask:
    """What one name stands for: a task, or several that the harness lists under it.

    Attributes:
        name: as asked for.
        loaded: the argument for `lm_eval.evaluator.evaluate`.
    """

    name: TaskName
    loaded: dict[str, Any]

    def requests(self) -> list[Any]:
        """Return every request of its tasks, once they were evaluated."""
        return [each for task in self.loaded["tasks"].values() for each in task.instances]

    def check_shots(self) -> None:
        """Raise a ConfigError if a task has too few items to draw its few-shot examples from."""
        for name, task in self.loaded["tasks"].items():
            shots = self._shots(task)
            if not shots or not hasattr(task, "sampler"):
                continue
            # An item is no example of itself.
            own = task.fewshot_cfg.split == task.config.test_split
            room = max(0, len(task.sampler.df) - own)
            if shots > room:
                raise ConfigError(
                    "choosing the tasks",
                    got=f"{shots} solved examples of {name}",
                    expected=f"at most {room}: there are no more" + " beside an item" * own,
                    todo=f"ask for {self.name.name}@{room} or fewer",
                )

    def _shots(self, task: Any) -> int:
        if self.name.shots is not None:
            return self.name.shots
        return int(task.get_config("num_fewshot") or 0)

    def prepare(self) -> None:
        """Set shots and seed, so that every run draws the same examples."""
        for task in self.loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=self._shots(task))
            task.set_fewshot_seed(seed=SHOT_SEED)


def named(tasks: Sequence[str], suite: str | None = None) -> list[TaskName]:
    """Return the requested tasks, those of a suite first.

    Raises:
        ConfigError: no such suite, no task, or one that is asked for twice.
    """
    if suite is not None:
        check_choice("choosing the suite", suite, SUITES, todo="or name tasks: --tasks (tasks=)")
    texts = [*(SUITES[suite] if suite else ()), *tasks]
    found = [TaskName.parse(text) for text in texts]
    names = [task.name for task in found]
    if not names or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(
            "choosing the tasks",
            got=f"{', '.join(twice)} twice" if twice else "none",
            expected="tasks, as piqa,arc_easy@25, each once",
        )
    return found


@advancing("loading the tasks", announced=True)
def load_tasks(names: Sequence[TaskName], task_dir: str | Path | None = None) -> list[LoadedTask]:
    """Load tasks with their data.

    Args:
        names: names of tasks, groups or tags.
        task_dir: a folder of task files, which are searched first: YAML of the harness, and JSONL
            as in `skipgpt.evaluation.harness.local`.

    Raises:
        ConfigError: there is no such task (the nearest names are given), or it has fewer items
            than shots.
        DataError: a task file is not valid, or its data cannot be loaded or is empty.

    Example:
        load_tasks([TaskName("piqa"), TaskName("arc_easy", 25)])
    """
    local = LocalTasks(Path(task_dir)) if task_dir else None
    missing = [task.name for task in names if local is None or task.name not in local]
    if local is not None and (broken := local.broken_of(missing)):
        raise DataError(
            f"reading the task files in {task_dir}",
            got=broken,
            expected="YAML with a `task`, as lm-evaluation-harness has it",
        )
    manager = _manager(task_dir, missing, local) if missing else None
    loaded = []
    for name in names:
        doing = f"loading the task {name.name}"
        try:
            with quietly():
                if local is not None and name.name in local:
                    found = {"tasks": {name.name: local.load(name.name)}}
                else:
                    found = dict(manager.load([name.name]))  # type: ignore[union-attr]
        except SkipGPTError:
            raise
        except IndexError as error:  # the harness reads the first item unchecked
            raise DataError(
                doing, got=f"no item ({error})", expected="one or more", todo="check its data"
            ) from error
        except Exception as error:  # from the harness, data sets or task files
            raise DataError(
                doing,
                got=in_brief(error),
                expected="a task and its data",
                todo="check the task file, the network and HF_HUB_OFFLINE; "
                "local tasks are given with --task-dir",
            ) from error
        for each, task in found["tasks"].items():
            if not len(task.eval_docs):
                raise DataError(
                    doing, got=f"no item in {each}", expected="one or more", todo="check its data"
                )
        task_and_data = LoadedTask(name, found)
        task_and_data.check_shots()
        loaded.append(task_and_data)
    return loaded


def _manager(task_dir: str | Path | None, names: Sequence[str], local: LocalTasks | None) -> Any:
    """Build the harness's index of tasks, which takes seconds; a ConfigError if it lacks a name."""
    manager = _index_with(task_dir) if task_dir else _packaged_index()
    for name in names:
        if name in manager.task_index:
            continue
        names_known = dict.fromkeys([*manager.all_tasks, *(local or ())])
        near = difflib.get_close_matches(name, names_known, n=3)
        unread = "" if local is None else local.broken_of()
        raise ConfigError(
            "choosing the tasks",
            got=repr(name),
            expected="a task of lm-evaluation-harness"
            + (f" or of {task_dir}" if task_dir else "")
            + (f"; the nearest are {', '.join(near)}" if near else ""),
            todo="`lm_eval ls tasks` lists them"
            + (f"; files of {task_dir} that cannot be read: {unread}" if unread else ""),
        )
    return manager


def _index_with(task_dir: str | Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    with quietly():
        return TaskManager(include_path=str(task_dir) if task_dir else None)


@functools.cache
def _packaged_index() -> Any:
    """The index of the harness's own tasks, which do not change while a process lives."""
    return _index_with(None)


def metric_of(task: str, metrics: Sequence[str]) -> str:
    """Return a task's main metric of those measured: the paper's if it has one.

    The name of a local variant begins with that of the paper's task.

    Example:
        >>> metric_of("hellaswag", ["acc", "acc_norm"])
        'acc_norm'
    """
    if task.startswith(NORMALISED) and "acc_norm" in metrics:
        return "acc_norm"
    return "acc" if "acc" in metrics else metrics[0]
