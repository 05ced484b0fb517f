"""Dense beside sparse, against scores item by item without the harness."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from lm_eval.api.model import hash_args
from sqlitedict import SqliteDict

from local_data import ITEMS, PUBLISHED, Plain, plainly, published_items, write_items
from runs import make_checkpoint, rows, shared_checkpoint
from skipgpt.analysis import stress, trace_dense, trace_text
from skipgpt.checkpoint.loading import load
from skipgpt.errors import ConfigError
from skipgpt.evaluation.harness.benchmark import Setting, benchmark, task_scores
from skipgpt.evaluation.harness.result import Benchmark, Run, Score
from skipgpt.evaluation.harness.scoring import Scorer
from skipgpt.model.base import load_base
from skipgpt.model.sparsity import at_sparsity
from skipgpt.model.state import execution
from skipgpt.model.surgery import add_routers


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_items(folder)
    return folder


def answers(cache: Path) -> list[dict[str, Any]]:
    """What each run answered, by hash of the request."""
    files = [str(path) for path in cache.glob("*.db") if not path.name.endswith(".notes.db")]
    found = []
    for path in files:
        (table,) = set(SqliteDict.get_tablenames(path)) - {"unnamed"}  # which the harness makes
        found.append(dict(SqliteDict(path, tablename=table)))
    return found


def agrees(answered: dict[str, Any], plain: Plain) -> bool:
    found = [answered[hash_args("loglikelihood", request)][0] for request in plain.nats]
    return found == pytest.approx(list(plain.nats.values()), abs=1e-3, rel=1e-5)


def test_published_items_score_as_they_do_item_by_item(data_folder: Path, tmp_path: Path) -> None:
    make_checkpoint(data_folder / "stories260K", tmp_path / "checkpoint", lora=True)
    count = 8
    setting = Setting(task_dir=data_folder / "eval", limit=count, cache=tmp_path / "cache")
    found = benchmark(tmp_path / "checkpoint", PUBLISHED, sparsity=0.2, setting=setting)

    base, tokenizer = load_base(str(data_folder / "stories260K"))
    routed, _ = load(tmp_path / "checkpoint", sparsity=0.2, merge=True)
    items = {name: published_items(data_folder, name, count) for name in PUBLISHED}
    kept = decided = 0
    for model, run, kind in (
        (add_routers(base), found.dense, "dense"),
        (routed, found.sparse, "gated"),
    ):
        with execution(model, kind):
            plain = {name: plainly(model, tokenizer, items[name]) for name in PUBLISHED}
        (_,) = [each for each in answers(tmp_path / "cache") if agrees(each, plain["piqa"])]
        (answered,) = [
            each
            for each in answers(tmp_path / "cache")
            if all(agrees(each, plain[name]) for name in PUBLISHED)
        ]
        assert len(answered) == sum(len(plain[name].nats) for name in PUBLISHED)
        for name, score in zip(PUBLISHED, run.scores, strict=True):
            metric = "acc_norm" if name == "hellaswag-1k" else "acc"
            right = list(map(float, getattr(plain[name], metric)))
            assert (score.task, score.metric, score.items) == (name, metric, count)
            assert score.value == pytest.approx(statistics.mean(right))
            assert score.stderr == pytest.approx(statistics.stdev(right) / count**0.5)
            for each in ("acc", "acc_norm"):
                expected = statistics.mean(getattr(plain[name], each))
                assert score.metrics[f"{each},none"] == pytest.approx(expected)
            if kind == "gated":
                measured = run.by_task[name]["module"]
                assert measured == pytest.approx(plain[name].module_sparsity, abs=1e-4)
                kept, decided = kept + plain[name].kept, decided + plain[name].decided
    assert found.sparse.sparsity["module"] == pytest.approx(1 - kept / decided, abs=1e-4)
    assert set(found.dense.sparsity.values()) == {0.0}
    assert found.sparse.cut_off > 0  # passages of BoolQ


def test_dense_is_the_base_model_without_lora(tasks: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    benchmark(shared_checkpoint(), ["numbers"], setting=Setting(task_dir=tasks, cache=cache))
    base, tokenizer = load_base(str(shared_checkpoint().parent / "base"))
    healed, _ = load(shared_checkpoint(), sparsity=0, merge=True)
    items = [(item["query"] + "\nAnswer:", item["choices"], item["gold"]) for item in ITEMS]
    of_healed = plainly(healed, tokenizer, items)
    with execution(add_routers(base), "dense"):
        of_base = plainly(base, tokenizer, items)
    assert sum(agrees(each, of_base) for each in answers(cache)) == 1
    assert sum(agrees(each, of_healed) for each in answers(cache)) == 0


def test_the_dial_turns_and_the_target_is_the_default(tasks: Path) -> None:
    setting = Setting(task_dir=tasks)
    none, half, target, trained = (
        benchmark(shared_checkpoint(), ["numbers"], sparsity=sparsity, setting=setting).sparse
        for sparsity in (0.0, 0.5, 0.25, None)
    )
    assert none.sparsity["module"] == 0
    assert 0.05 < target.sparsity["module"] < half.sparsity["module"]
    assert trained.sparsity == target.sparsity
    assert trained.scores == target.scores
    assert (half.asked, trained.asked) == (0.5, None)


def test_an_interrupted_run_goes_on_and_comes_to_the_same(tasks: Path, tmp_path: Path) -> None:
    whole = benchmark(shared_checkpoint(), ["numbers"], setting=Setting(task_dir=tasks))
    setting = Setting(task_dir=tasks, cache=tmp_path / "cache", batch_size=1)
    forward, done = Scorer._forward, []

    def interrupted(self: Scorer, *arguments: Any) -> Any:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(arguments)
        return forward(self, *arguments)

    with mock.patch.object(Scorer, "_forward", interrupted), pytest.raises(KeyboardInterrupt):
        benchmark(shared_checkpoint(), ["numbers"], setting=setting)
    with mock.patch.object(Scorer, "_forward", autospec=True, side_effect=forward) as rest:
        resumed = benchmark(shared_checkpoint(), ["numbers"], setting=setting)
    assert resumed.sparse.sparsity == pytest.approx(whole.sparse.sparsity)
    assert resumed.to_dict()["tasks"] == whole.to_dict()["tasks"]
    # Choices of one token share a row, and rows are read in either run.
    assert len(rest.call_args_list) == 2 * len(ITEMS) - len(done)
    with mock.patch.object(Scorer, "_forward", side_effect=AssertionError):
        assert benchmark(shared_checkpoint(), ["numbers"], setting=setting) == resumed


def test_another_sparsity_does_not_find_the_answers_of_the_first(
    tasks: Path, tmp_path: Path
) -> None:
    kept = Setting(task_dir=tasks, cache=tmp_path / "cache")
    for sparsity in (0.1, 0.5):
        fresh = benchmark(
            shared_checkpoint(), ["numbers"], sparsity=sparsity, setting=Setting(task_dir=tasks)
        )
        found = benchmark(shared_checkpoint(), ["numbers"], sparsity=sparsity, setting=kept)
        assert found == fresh
    assert len(answers(tmp_path / "cache")) == 3  # two sparsities, and dense once


def test_shots_are_the_same_items_before_dense_and_sparse(tasks: Path) -> None:
    setting = Setting(task_dir=tasks)
    none = benchmark(shared_checkpoint(), ["numbers"], setting=setting)
    read = []
    score = Scorer.score

    def noted(self: Scorer, pairs: Any) -> Any:
        read.append([tuple(map(tuple, pair)) for pair in pairs])
        return score(self, pairs)

    with mock.patch.object(Scorer, "score", noted):
        shots = benchmark(shared_checkpoint(), ["numbers@2"], setting=setting)
    sparse, dense = read
    assert sparse == dense
    assert all(len(context) > 2 * len("Question: which is 0?") for context, _ in dense)
    assert (none.dense.scores[0].shots, shots.dense.scores[0].shots) == (0, 2)


def test_scores_along_the_dial_feed_the_stress_test(tasks: Path) -> None:
    found = task_scores(
        shared_checkpoint(), ["numbers"], [0.1, 0.5], setting=Setting(task_dir=tasks)
    )
    assert list(found) == ["numbers"]
    assert set(found["numbers"]) == {None, 0.1, 0.5}
    alone = benchmark(
        shared_checkpoint(), ["numbers"], sparsity=0.5, setting=Setting(task_dir=tasks)
    )
    assert found["numbers"][0.5] == alone.sparse.scores[0].value
    assert found["numbers"][None] == alone.dense.scores[0].value

    model, tokenizer = load(shared_checkpoint(), merge=True)
    traces = {}
    for sparsity in (0.1, 0.5):
        with at_sparsity(model, sparsity):
            traces[sparsity] = trace_text(model, tokenizer, rows(2))
    table = stress(trace_dense(model, tokenizer, rows(2)), traces, found)
    assert table.columns[-1] == "numbers"
    assert [row[-1] for row in table.rows] == [found["numbers"][s] for s in (None, 0.1, 0.5)]


def test_a_checkpoint_without_calibration_is_run_as_it_is(
    base_folder: Path, tasks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint(base_folder, tmp_path / "c", calibrated=False)
    found = benchmark(tmp_path / "c", ["numbers"], setting=Setting(task_dir=tasks))
    assert 0 < found.sparse.sparsity["module"] < 1
    assert "never calibrated" in caplog.text
    with pytest.raises(ConfigError, match="never calibrated"):
        benchmark(tmp_path / "c", ["numbers"], sparsity=0.3, setting=Setting(task_dir=tasks))


@pytest.mark.parametrize(
    "values", [{"execution": "fast"}, {"batch_size": 0}, {"limit": -1}, {"batch_size": "some"}]
)
def test_a_setting_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Setting(**values)


def test_the_mean_of_retentions_is_no_retention_of_means() -> None:
    def run(*values: float) -> Run:
        scores = tuple(
            Score(f"t{n}", 0, 9, "acc", value, 0.01, {}) for n, value in enumerate(values)
        )
        return Run(0.25, scores, {"module": 0.2512}, {}, 3)

    found = Benchmark(run(0.8, 0.2, 0.0), run(0.4, 0.2, 0.1))
    assert found.retention == {"t0": 0.5, "t1": 1.0, "t2": None}
    assert found.mean_retention == 0.75
    assert found.sparse.mean == pytest.approx(0.7 / 3)
    assert found.to_terminal().splitlines() == [
        "task  shots  items  metric         dense        sparse    kept",
        "t0        0      9  acc     80.00 ± 1.00  40.00 ± 1.00   50.0%",
        "t1        0      9  acc     20.00 ± 1.00  20.00 ± 1.00  100.0%",
        "t2        0      9  acc      0.00 ± 1.00  10.00 ± 1.00       -",
        "mean                               33.33         23.33   75.0%",
        "measured sparsity: module 25.1%",
        "3 requests were longer than the model's context",
    ]
    assert json.loads(json.dumps(found.to_dict()))["mean"]["retention"] == 0.75
