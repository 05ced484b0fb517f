"""What `export --static` refuses, and what its command takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cases import base
from command import skipgpt as command
from runs import write_documents
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    UnsupportedModelError,
)
from skipgpt.export import rebuild
from static_exports import A1, M0, export, make


def test_nothing_below_the_rate_names_the_lowest_rates_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"\d\.\w+ \d+\.\d%.*less than 5\.0%.*--keep-rate.*--spars"
    ):
        export(make(tmp_path, []))
    assert not (tmp_path / "small").exists()


def test_one_module_of_a_parallel_layer_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share a layer in this model"):
        export(make(tmp_path, [M0, A1], base("cohere2")))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_a_keep_rate_that_is_no_share_is_refused(rate: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep_rate.*above 0, at most 1"):
        export(make(tmp_path, [M0, A1]), keep_rate=rate)


def test_a_model_whose_logits_would_differ_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    monkeypatch.setattr(
        "skipgpt.export.static.smaller_model",
        lambda model, _: rebuild.smaller_model(model, [(0, 0), (2, 2)]),
    )
    with pytest.raises(UnsupportedModelError, match="logits that differ by"):
        export(checkpoint)
    assert not (tmp_path / "small").exists()


def test_stand_ins_are_left_out(tmp_path: Path) -> None:
    with_them = export(make(tmp_path / "with", [M0, A1], stand_in=4))
    without = export(make(tmp_path / "without", [M0, A1]))
    assert with_them.parameters_after == without.parameters_after
    assert with_them.losses["static"] == pytest.approx(without.losses["static"])
    assert with_them.losses["routed"] != pytest.approx(without.losses["routed"])


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    path = checkpoint / "skipgpt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": "8bit"}))
    with pytest.raises(CheckpointError, match="a base held in 8bit"):
        export(checkpoint)


def test_a_folder_that_holds_a_model_is_refused_unless_overwriting(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    export(checkpoint)
    with pytest.raises(CheckpointError, match=r"already holds a model.*--overwrite"):
        export(checkpoint)
    export(checkpoint, overwrite=True)


def test_the_command_prints_what_the_library_returns(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    data = write_documents(tmp_path, "many.jsonl", count=100)
    arguments = ("export", checkpoint, "--static", "--data", data, "--block-size", 16, "--out")
    finished = command(*arguments, tmp_path / "small", "--json")
    assert finished.status == 0, finished.stderr
    assert finished.stderr == ""
    document = json.loads(finished.stdout)
    assert document == json.loads((tmp_path / "small" / "static_export.json").read_text())
    assert document["removed"] == ["0.mlp", "1.attn"]
    assert list(document["losses"]) == ["dense", "routed", "static"]
    for_people = command(*arguments, tmp_path / "again", "--heal-steps", 1).stdout
    assert ", healed " in for_people
    assert "removed 0.mlp, 1.attn\nlayers 3 -> 2, parameters " in for_people


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no form"),
        (("--merged", "--static", "--data", "stdlib"), "both forms"),
        (("--static",), "--static without --data"),
        (("--merged", "--data", "stdlib"), "--merged with --data"),
        (("--merged", "--heal-steps", "5"), "--heal-steps; expected it with --static"),
        (("--merged", "--seed", "3"), "--seed; expected it with --static"),
    ],
)
def test_the_command_wants_one_form_and_text_for_static_alone(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    finished = command("export", "checkpoint", *arguments, "--out", tmp_path / "out")
    assert finished.status == 2
    assert words in finished.stderr
