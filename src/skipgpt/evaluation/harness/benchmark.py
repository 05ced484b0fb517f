"""Scores of dense and sparse models on published tasks, at one sparsity or at several."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipgpt.checkpoint.folder import local_folder, read_info
from skipgpt.checkpoint.loading import load_base_of, load_placed
from skipgpt.config import Budget, Placement, check_pair
from skipgpt.config.checks import check_choices
from skipgpt.cost import no_sparsities
from skipgpt.errors import ConfigError
from skipgpt.evaluation.calibrate import say_if_uncalibrated
from skipgpt.evaluation.harness.quiet import quietly, require_harness
from skipgpt.evaluation.harness.response_cache import answers_key, check_answers
from skipgpt.evaluation.harness.result import Benchmark, Run, Score
from skipgpt.evaluation.harness.tasks import LoadedTask, load_tasks, metric_of, named
from skipgpt.model.sparsity import clamp_to_curve, set_sparsity
from skipgpt.model.state import Execution, routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.system.progress import advancing

logger = logging.getLogger("skipgpt")


@dataclass(frozen=True)
class Setting:
    """How benchmarks are run.

    Attributes:
        task_dir: a folder of local tasks.
        limit: items per task, from the first; 0 is all.
        batch_size: requests per forward, or `auto`.
        cache: a folder in which responses are cached, so that an interrupted run can resume.
        execution: execution of the checkpoint.
        placement: how models are loaded.

    Raises:
        ConfigError: an unknown execution, or numbers below their range.
    """

    task_dir: str | Path | None = None
    limit: int = 0
    batch_size: int | str = "auto"
    cache: str | Path | None = None
    execution: Execution = "auto"
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        check_choices(self)
        rows = self.batch_size
        if rows != "auto" and (isinstance(rows, str) or rows < 1):
            raise ConfigError("reading batch_size", got=repr(rows), expected="auto, or 1 or more")


def benchmark(
    folder: str | Path,
    tasks: Sequence[str] = (),
    *,
    suite: str | None = None,
    sparsity: float | None = None,
    budget: Budget | None = None,
    setting: Setting | None = None,
) -> Benchmark:
    """Score a checkpoint and its base model, without LoRA, on the same items.

    Args:
        folder: a checkpoint, or a hub id of one.
        tasks: tasks of lm-evaluation-harness or of `setting.task_dir`, with shots as in
            `arc_easy@25`.
        suite: `paper` or `zero-shot`, further tasks.
        sparsity: share to save; the trained target if None.
        budget: the unit of `sparsity`; that of the checkpoint if None.
        setting: how it is run.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the cache cannot be written.
        ConfigError: no such task or suite, more shots than items, or a sparsity beyond the
            calibration curve.
        DataError: a task's data cannot be loaded, is empty, or an item does not fit the model.
        MissingExtraError: without the extra `eval`.

    Example:
        print(benchmark("out/nano-25", ["piqa", "arc_easy@25"]).to_terminal())
    """
    check_pair(sparsity, budget)
    names = named(tasks, suite)
    sparse, dense = _runs(folder, names, [sparsity], setting or Setting(), budget)
    return Benchmark(dense, sparse)


def task_scores(
    folder: str | Path,
    tasks: Sequence[str],
    sparsities: Sequence[float],
    *,
    budget: Budget | None = None,
    setting: Setting | None = None,
) -> dict[str, dict[float | None, float]]:
    """Return each task's score by requested sparsity, with None for the dense base model.

    Made for `skipgpt.analysis.stress(dense, traces, tasks)`. Each sparsity is given once; with
    LoRA, 0 is not the base model. All else is as for `benchmark`.

    Raises:
        SkipGPTError: as `benchmark`.

    Example:
        stress(dense, traces, task_scores("out/nano-25", ["piqa"], [0.25, 0.5]))
    """
    *routed, dense = _runs(folder, named(tasks), list(sparsities), setting or Setting(), budget)
    found: dict[str, dict[float | None, float]] = {
        score.task: {None: score.value} for score in dense.scores
    }
    for run in routed:
        for score in run.scores:
            found[score.task][run.asked] = score.value
    return found


def check_tasks(folder: str | Path, tasks: Sequence[str], setting: Setting) -> None:
    """Raise what `task_scores` would, as far as that can be told without running a model."""
    require_harness()
    if not read_info(local_folder(folder)).curves:
        raise ConfigError(
            "scoring tasks at several sparsities",
            got="a checkpoint that was never calibrated",
            expected="a calibrated checkpoint",
            todo="run skipgpt.calibrate, or score it as it is: skipgpt eval --tasks",
        )
    load_tasks(named(tasks), setting.task_dir)


def _runs(
    folder: str | Path,
    names: Sequence[Any],
    sparsities: Sequence[float | None],
    setting: Setting,
    budget: Budget | None = None,
) -> Iterator[Run]:
    """Yield the checkpoint's run at each sparsity, then the base's: never both in memory."""
    require_harness()
    if setting.cache:
        check_answers(setting.cache)
    folder = local_folder(folder)
    info = read_info(folder)
    tasks = load_tasks(names, setting.task_dir)
    model, tokenizer = load_placed(folder, setting.placement, merge=True)
    say_if_uncalibrated(model)
    for sparsity in sparsities:  # fail before hours of work
        if sparsity is not None:
            set_sparsity(model, sparsity, budget=budget)
    for sparsity in sparsities:
        if sparsity is not None:
            set_sparsity(model, sparsity, budget=budget)
        elif routing_state(model).curves is not None:
            set_sparsity(model, clamp_to_curve(model, info.target_sparsity))
        yield _run(model, tokenizer, tasks, setting, sparsity, setting.execution)
    del model
    gc.collect()
    base, tokenizer = load_base_of(info, setting.placement)
    yield _run(add_routers(base), tokenizer, tasks, setting, 0.0, "dense")


def _run(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[LoadedTask],
    setting: Setting,
    asked: float | None,
    execution: Execution,
) -> Run:
    """Score one model on all tasks."""
    from lm_eval.api.model import CachingLM
    from lm_eval.evaluator import evaluate

    from skipgpt.evaluation.harness.model import RoutedLM

    routing_state(model).execution = execution
    lm = RoutedLM(model, tokenizer, batch_size=setting.batch_size)
    asking: Any = lm
    if setting.cache:  # each model has a file of its own
        asking = CachingLM(lm, str(Path(setting.cache) / f"answers-{answers_key(lm)}.db"))
    what = "dense" if execution == "dense" else "sparse"
    nothing = no_sparsities(model)
    scores: list[Score] = []
    by_task: dict[str, dict[str, float]] = {}
    requests: list[Any] = []
    for task in tasks:
        task.prepare()
        with advancing(f"task {task.name.name}, {what}", announced=True), quietly():
            found = evaluate(
                lm=asking, task_dict=task.loaded, limit=setting.limit or None, log_samples=False
            )
        scores += _scores(task, found)
        requests += task.requests()
        by_task[task.name.name] = lm.sparsity_over(task.requests()) or nothing
        logger.info(
            "%s %s: %s",
            what,
            task.name.name,
            ", ".join(f"{score.metric} {score.value:.4f}" for score in scores[-1:]),
        )
    sparsity = lm.sparsity_over(requests) or nothing
    return Run(asked, tuple(scores), sparsity, by_task, lm.cut_off(requests))


def _scores(task: LoadedTask, found: Any) -> list[Score]:
    """Return the score of each task, or that of the group if it has one."""
    results: dict[str, dict[str, Any]] = found["results"]
    chosen = [task.name.name] if task.name.name in results else list(task.loaded["tasks"])
    return [_score(name, results[name], found) for name in chosen]


def _score(name: str, values: dict[str, Any], found: Any) -> Score:
    metrics = {
        key: float(value)
        for key, value in values.items()
        if "," in key and isinstance(value, int | float)
    }
    plain = [key for key in metrics if "_stderr," not in key]
    metric = metric_of(name, [key.partition(",")[0] for key in plain])
    key = next(key for key in plain if key.partition(",")[0] == metric)
    of, _, kind = key.partition(",")
    return Score(
        task=name,
        shots=int(found["n-shot"].get(name, 0) or 0),
        items=int(values.get("sample_len", 0)),
        metric=metric,
        value=metrics[key],
        stderr=metrics.get(f"{of}_stderr,{kind}"),
        metrics=metrics,
    )
