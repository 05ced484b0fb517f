"""What a benchmark says: sentences, tables and pages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from skipgpt.benchmark.pages import write
from skipgpt.benchmark.result import Benchmark, Row


def row(**changes: object) -> Row:
    made = Row(
        phase="decode",
        batch_size=8,
        prompt_tokens=128,
        new_tokens=16,
        execution="sparse",
        asked=0.375,
        budget="flops",
        sparsity=0.4,
        union_sparsity=0.001,
        flops_share=0.6,
        packed_share=1.0,
        dense_seconds=0.2,
        sparse_seconds=0.1,
        speedup=2.0,
        speedup_range=(1.9, 2.1),
        int8_speedup=1.0,
        ideal_speedup=2.0,
        efficiency=1.0,
        over_gated=None,
        tokens_per_second=100.0,
        peak_memory_bytes=None,
        dense_peak_memory_bytes=None,
    )
    return dataclasses.replace(made, **changes)


AUTO = {"execution": "auto", "packed_share": 0.0}


def test_where_there_is_no_gain_a_sentence_says_why() -> None:
    assert row().no_gain == ""
    assert "run by some sequence" in row(speedup=1.0, ideal_speedup=1.001).no_gain
    assert "choosing and packing" in row(speedup=0.9, ideal_speedup=1.5).no_gain
    assert "multiplies" in row(speedup=0.9, execution="gated").no_gain
    assert "torch.compile" in row(speedup=0.9, execution="compiled").no_gain
    assert "language-model head" in row(speedup=0.9, execution="static").no_gain
    assert "trains on it" in row(speedup=0.9, phase="router_step", execution="gated").no_gain
    assert "hardly anything" in row(speedup=0.9, sparsity=0.0, ideal_speedup=1.0).no_gain
    assert row(speedup=4.0, execution="dense-int8", int8_speedup=4.0).no_gain == ""
    assert "8-bit products" in row(speedup=0.9, execution="dense-int8", int8_speedup=0.9).no_gain
    assert "auto ran every module on all tokens" in row(speedup=0.9, **AUTO).no_gain
    assert "auto ran most modules on" in row(speedup=0.9, **AUTO | {"packed_share": 0.2}).no_gain
    assert "choosing and packing" in row(speedup=0.9, **AUTO | {"packed_share": 0.8}).no_gain
    assert "by some sequence" in row(speedup=0.9, **AUTO | {"ideal_speedup": 1.0}).no_gain
    lost = row(speedup=3.9, execution="sparse-int8", int8_speedup=4.0, ideal_speedup=5.0)
    assert "choosing and packing" in lost.no_gain
    assert "(3.90x after 4.00x)" in Benchmark((lost,), {}).sentences()[0]
    assert dataclasses.replace(lost, speedup=4.4).no_gain == ""
    result = Benchmark((row(), row(speedup=0.9), row(speedup=0.8, prompt_tokens=64)), {})
    (sentence,) = result.sentences()
    assert sentence.startswith("No gain in sparse decode of 8 x 128 at 40% (0.90x), 8 x 64 at 40%")
    assert sentence in result.to_markdown()
    assert sentence in result.to_terminal()


def test_a_row_says_what_was_asked_and_in_which_unit() -> None:
    result = Benchmark((row(), row(execution="transformers", asked=None, budget=None)), {})
    head, _, first, second = (line.split(" | ") for line in result.to_markdown().splitlines()[:4])
    column = head.index("asked")
    assert (first[column], second[column]) == ("37.5% of FLOPs", "")
    said = [(each["asked"], each["budget"]) for each in result.to_dict()["rows"]]
    assert said == [(0.375, "flops"), (None, None)]


def test_notes_and_who_is_left_out_are_said_once() -> None:
    rows = (row(note="static is small"), row(note="static is small"), row())
    result = Benchmark(rows, {}, ("compiled is left out: no compiler.",))
    assert result.sentences() == ["Static is small.", "compiled is left out: no compiler."]
    assert result.to_dict()["left_out"] == ["compiled is left out: no compiler."]


def test_pages_are_written(tmp_path: Path) -> None:
    facts = {"subject": "x", "device": "y", "machine": {"source": "measured by us", "flops": 1.0}}
    write(Benchmark((row(), row(phase="prefill", sparsity=0.2)), facts), tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"bench.json", "bench.md", "bench.svg"}
    document = json.loads((tmp_path / "out/bench.json").read_text())
    assert len(document["rows"]) == 2
    assert document["machine"] == facts["machine"]
    line = (tmp_path / "out/bench.md").read_text().splitlines()[0]
    assert line == "subject x, device y, machine measured"
