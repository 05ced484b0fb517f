"""`skipgpt show` draws keep rates: the checkpoint's own, or those of a text."""

import dataclasses
import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from command import skipgpt
from runs import shared_checkpoint, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import save
from skipgpt.report.charts.keep_bars import keep_bars

KEEP = {"attn": (1.0, 0.5, 0.0), "mlp": (0.25, 0.75, 0.996)}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("text"), count=8)


@pytest.fixture(scope="module")
def with_rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rates") / "checkpoint"
    model, _ = load(shared_checkpoint())
    save(model, folder, dataclasses.replace(read_info(shared_checkpoint()), keep=KEEP))
    return folder


@functools.cache
def shown(text: Path, *more: object) -> dict[str, Any]:
    return document("show", shared_checkpoint(), "--text", text, *more)


def document(*arguments: object) -> dict[str, Any]:
    done = skipgpt(*arguments, "--json", "-q")
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)


def write_ascii() -> None:
    sys.stdout.reconfigure(encoding="ascii")


def test_a_text_can_be_read_in_8_bits(text: Path) -> None:
    plain = shown(text)
    done = skipgpt(
        *("show", shared_checkpoint(), "--text", text, "--json", "--quantize", "int8"),
        *("--block-size", 32, "--batch-size", 2),
    )
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout)["text"]
    assert found["nll_per_token"] != plain["text"]["nll_per_token"]


def test_bars_are_as_long_as_the_rates_and_fit_80_columns() -> None:
    assert keep_bars(KEEP).splitlines() == [
        "layer  attention                         MLP",
        "    1  100.0% " + "█" * 25 + "   25.0% ██████▎" + "·" * 18,
        "    2   50.0% ████████████▌" + "·" * 12 + "   75.0% " + "█" * 18 + "▊" + "·" * 6,
        "    3    0.0% " + "·" * 25 + "   99.6% " + "█" * 24 + "▉",
        " mean   50.0% ████████████▌" + "·" * 12 + "   66.5% " + "█" * 16 + "▋" + "·" * 8,
    ]
    many = keep_bars({"attn": [1.0] * 128, "mlp": [0.0] * 128})
    assert len(many.splitlines()) == 130
    assert {len(line) for line in many.splitlines()[1:]} == {73}


def test_rates_of_a_checkpoint_are_drawn_from_its_config(with_rates: Path) -> None:
    done = skipgpt("show", with_rates)
    assert done.status == 0
    assert done.stdout.endswith(
        f"\nShare of tokens that run each module, on held-out text:\n{keep_bars(KEEP)}\n"
    )
    assert document("show", with_rates)["keep"] == {kind: [*each] for kind, each in KEEP.items()}


def test_an_output_without_blocks_gets_plain_ascii(with_rates: Path) -> None:
    done = skipgpt("show", with_rates, before=write_ascii)
    assert done.status == 0
    assert done.stdout.isascii()
    assert "   50.0% " + "#" * 12 + "." * 13 in done.stdout


def test_a_checkpoint_without_rates_says_how_to_get_them() -> None:
    done = skipgpt("show", shared_checkpoint())
    assert done.stdout.endswith(
        "keep rates       not in this checkpoint; --text FILE measures them\n"
    )
    assert document("show", shared_checkpoint())["keep"] == {}


@pytest.mark.parametrize("more", [(), ("--sparsity", 0.5)], ids=["target", "dialled"])
def test_show_eval_and_report_print_the_same_sparsity_of_the_same_text(
    text: Path, more: tuple[object, ...]
) -> None:
    where, quiet = shared_checkpoint(), ("--json", "-q", *more)
    evaluated = json.loads(skipgpt("eval", where, "--text", text, *quiet).stdout)
    report = json.loads(skipgpt("report", where, "--data", text, *quiet).stdout)
    reported, measured = report["routed"], shown(text, *more)["text"]
    for key in ("sparsity", "keep_rates", "nll_per_token", "perplexity", "tokens"):
        assert measured[key] == evaluated[key] == reported[key]
    rates = measured["keep_rates"]
    rows = [[n, *both] for n, both in enumerate(zip(rates["attn"], rates["mlp"], strict=True), 1)]
    assert report["tables"]["modules"]["rows"] == rows
    line = skipgpt("eval", where, "--text", text, *more).stdout.splitlines()[0]
    lines = skipgpt("show", where, "--text", text, *more).stdout.splitlines()
    assert line in lines
    assert lines[-5:] == keep_bars(rates).splitlines()


def test_the_mean_keep_rate_is_what_the_sparsity_leaves(text: Path) -> None:
    found = shown(text)["text"]
    for kind in ("attn", "mlp"):
        rates = found["keep_rates"][kind]
        assert sum(rates) / len(rates) == pytest.approx(1 - found["sparsity"][kind], abs=1e-12)
    assert found["sources"] == [str(text)]
    assert "tokens" in found["read"]


def test_measuring_changes_nothing_in_the_checkpoint(text: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shared_checkpoint(), tmp_path / "copy"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert skipgpt("show", copy, "--text", text).status == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_missing_or_empty_text_is_one_clear_line(tmp_path: Path) -> None:
    missing = skipgpt("show", shared_checkpoint(), "--text", tmp_path / "none.txt")
    assert missing.status == 1
    assert "none.txt', where nothing is" in missing.stderr
    (tmp_path / "empty.txt").write_text("")
    empty = skipgpt("show", shared_checkpoint(), "--text", tmp_path / "empty.txt")
    assert empty.status == 1
    for done in (missing, empty):
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("skipgpt: ")


def test_another_sparsity_needs_a_text() -> None:
    done = skipgpt("show", shared_checkpoint(), "--sparsity", 0.5)
    assert done.status == 2
    assert "give --text FILE" in done.stderr
