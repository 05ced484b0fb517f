"""skipgpt bench, as a script sees it."""

from __future__ import annotations

import json
from pathlib import Path

from command import skipgpt
from runs import shared_checkpoint, write_documents

TINY = ("bench", "--shape", "llama-tiny", "--repeats", "1", "--prompt-tokens", "8")


def test_bench_prints_exactly_one_document_and_keeps_it(tmp_path: Path) -> None:
    more = ("--phases", "prefill,decode", "--decode-tokens", "2", "--sparsity", "0.5", "--json")
    finished = skipgpt(*TINY, *more, "--out", tmp_path / "out")
    assert finished.status == 0, finished.stderr
    document = json.loads(finished.stdout)
    promised = {
        "phase", "batch_size", "prompt_tokens", "sparsity", "dense_seconds", "sparse_seconds",
        "speedup", "ideal_speedup", "efficiency", "tokens_per_second", "peak_memory_bytes",
    }  # fmt: skip
    ran = [(row["phase"], row["execution"]) for row in document["rows"]]
    assert ran == [(p, e) for p in ("prefill", "decode") for e in ("auto", "transformers")]
    assert all(promised <= row.keys() for row in document["rows"])
    assert json.loads((tmp_path / "out/bench.json").read_text()) == document


def test_learned_routes_run_at_the_sparsity_that_was_asked_for(tmp_path: Path) -> None:
    text = write_documents(tmp_path)
    finished = skipgpt(
        *(
            "bench",
            shared_checkpoint(),
            "--data",
            text,
            "--repeats",
            "1",
            "--prompt-tokens",
            "64",
            "--json",
        ),
        *("--phases", "prefill", "--sparsity", "0,0.3", "--executions", "auto"),
    )
    assert finished.status == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert document["routes"] == "learned"
    assert document["base"]
    # The unit in which the checkpoint was trained.
    assert {row["budget"] for row in document["rows"]} == {"modules"}
    assert [row["asked"] for row in document["rows"]] == [0.0, 0.3]
    none, some = (row["sparsity"] for row in document["rows"])
    assert none == 0.0
    assert some > 0.0


def test_a_budget_without_a_sparsity_is_refused_before_anything_is_loaded() -> None:
    for subject in (("nosuch",), ("--shape", "nosuch")):
        finished = skipgpt("bench", *subject, "--budget", "modules")
        assert finished.status == 2
        assert "'modules' without a sparsity" in finished.stderr
        assert "--sparsity" in finished.stderr


def test_what_is_to_be_timed_has_to_be_one_thing() -> None:
    for wrong in (("bench",), (*TINY, "out/some")):
        finished = skipgpt(*wrong)
        assert finished.status == 2
        assert "expected one of them" in finished.stderr
        assert "Traceback" not in finished.stderr


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_timed(
    tmp_path: Path,
) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    done = skipgpt("bench", "--shape", "no-such-shape", "--out", taken)
    assert done.status == 1
    assert "writing to" in done.stderr
    assert taken.read_text() == "mine"
