"""A comparison makes nothing twice, and everything anew that its settings change."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comparisons import ALL, WHOLE, by_method
from runs import compared, write_documents
from skipgpt.checkpoint.loading import load
from skipgpt.comparison import compare as comparing
from skipgpt.comparison.result import Comparison
from skipgpt.config import TrainConfig, recipe
from skipgpt.config.settings import to_dict
from skipgpt.errors import CheckpointError, ConfigError
from tiny import tiny_base


def test_a_changed_default_raises_the_version_of_kept_rows() -> None:
    """Keys leave defaults out, so a row would be taken for one of another default.

    A new option with a default of its own changes the digest alone.
    """
    defaults = [to_dict(TrainConfig()), to_dict(recipe("default"))]
    digest = hashlib.sha256(json.dumps(defaults, sort_keys=True).encode()).hexdigest()
    assert (comparing.CACHE_VERSION, digest[:16]) == (10, "364547e0e34838d4")


def test_a_second_call_runs_nothing_again(
    base: Path, everything: Comparison, made: list[str]
) -> None:
    again = compared(base, base.parent / "all", *ALL, sparsities=(WHOLE,))
    assert made == []
    assert again == everything


def test_one_more_method_costs_one_method(
    base: Path, everything: Comparison, tmp_path: Path, made: list[str]
) -> None:
    out = Path(shutil.copytree(base.parent / "all", tmp_path / "out"))
    more = compared(base, out, "router", "shortgpt", "sleb", "router+lora", sparsities=(WHOLE,))
    assert made == ["static"]
    ours, rows = by_method(more), by_method(everything)
    assert list(ours) == ["router", "shortgpt", "sleb", "router+lora"]
    for name in ("router", "sleb", "router+lora"):  # checkpoints moved along with their folder
        moved, first = ours[name], rows[name]
        assert replace(moved, checkpoint=None) == replace(first, checkpoint=None)
        assert moved.checkpoint is None or Path(moved.checkpoint).is_relative_to(out)


def test_what_stands_on_routers_that_were_not_asked_for_trains_them_once(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    found = compared(base, tmp_path / "out", "router+lora", "random")
    assert [row.method for row in found.rows] == ["router+lora", "random"]
    assert made == ["train", "train", "random"]
    compared(base, tmp_path / "out", "router")
    assert made == ["train", "train", "random"]


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"router_stage.static_tokens": 32}},
        {"settings": {"data.block_size": 15}},
        {"recipe": "paper"},
        {"sparsities": (0.3,)},
        {"budget": "flops"},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_whatever_changes_a_method_makes_it_anew(
    base: Path, tmp_path: Path, made: list[str], changed: dict[str, Any]
) -> None:
    compared(base, tmp_path / "out", "sleb")
    compared(base, tmp_path / "out", "sleb", **changed)
    assert made == ["static"] * 2
    compared(base, tmp_path / "out", "sleb")
    compared(base, tmp_path / "out", "sleb", **changed)
    assert made == ["static"] * 2


def test_a_setting_of_training_makes_routers_anew(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    first, second, third = (
        compared(base, tmp_path / "out", "router", settings=settings).rows[0]
        for settings in ({}, {"router_stage.learning_rate": 0.5}, {})
    )
    assert made == ["train", "train"]
    assert first == third != second
    assert first.checkpoint != second.checkpoint


@pytest.mark.parametrize("what", ["base", "config", "text"])
def test_another_base_or_text_of_the_same_name_makes_everything_anew(
    what: str, base_folder: Path, tmp_path: Path, made: list[str]
) -> None:
    first = compared(base_folder, tmp_path / "out", "dense", "sleb")
    if what == "base":
        tiny_base(seed=5).save_pretrained(base_folder)
    elif what == "config":
        config = json.loads((base_folder / "config.json").read_text())
        (base_folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    else:
        write_documents(tmp_path, count=50)
    second = compared(base_folder, tmp_path / "out", "dense", "sleb")
    assert made == ["static"] * 2
    for row, other in zip(first.rows, second.rows, strict=True):
        assert row.nll_per_token != other.nll_per_token


def test_a_checkpoint_that_was_deleted_is_made_again(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    (first,) = compared(base, tmp_path / "out", "router").rows
    shutil.rmtree(str(first.checkpoint))
    (second,) = compared(base, tmp_path / "out", "router").rows
    assert made == ["train", "train"]
    assert second.nll_per_token == first.nll_per_token
    assert load(str(second.checkpoint))


def test_what_was_finished_before_a_failure_is_kept(
    base: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConfigError("trying", got="a failure", expected="none")

    with monkeypatch.context() as patch:
        patch.setattr(comparing.static, "remove", fail)
        with pytest.raises(ConfigError, match="a failure"):
            compared(base, tmp_path / "out", "router", "sleb")
    assert made == ["train"]
    compared(base, tmp_path / "out", "router", "sleb", sparsities=(0.25,))
    assert made == ["train", "static"]


def test_a_comparison_is_found_again_from_another_folder(
    base: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compared(base, Path("out"), "router")
    monkeypatch.chdir(base.parent)
    compared(base, tmp_path / "out", "router")
    assert made == ["train"]


def test_settings_of_healing_make_no_difference_to_what_is_not_healed(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    compared(base, tmp_path / "out", "router", "router+lora", "joint")
    assert made == ["train"] * 3
    longer = {"lora_stage.steps": 3}
    compared(base, tmp_path / "out", "router", "router+lora", "joint", settings=longer)
    assert made == ["train"] * 5


def test_healing_with_other_settings_heals_the_same_routers(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    names = ("router+lora", "router+lora:lora_stage.alpha=8")
    first, second = compared(base, tmp_path / "out", *names).rows
    assert made == ["train"] * 3
    assert first.nll_per_token != second.nll_per_token


def test_a_checkpoint_that_was_finished_before_its_row_is_measured_again_and_not_trained(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = compared(base, tmp_path / "out", "router").rows
    shutil.rmtree(tmp_path / "out" / "cache")
    monkeypatch.setattr("skipgpt.training.run.run_stage", None)
    (second,) = compared(base, tmp_path / "out", "router").rows
    assert replace(second, seconds=first.seconds) == first


def test_a_row_of_an_earlier_version_is_read_without_closeness(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    first = compared(base, tmp_path / "out", "sleb")
    (cached,) = (tmp_path / "out" / "cache").iterdir()
    kept = [
        {name: value for name, value in row.items() if name not in ("kl_to_dense", "agreement")}
        for row in json.loads(cached.read_text())
    ]
    cached.write_text(json.dumps(kept))
    second = compared(base, tmp_path / "out", "sleb")
    assert made == ["static"]
    assert second.rows == (replace(first.rows[0], kl_to_dense=None, agreement=None),)


def test_a_damaged_row_is_made_anew(base: Path, tmp_path: Path, made: list[str]) -> None:
    first = compared(base, tmp_path / "out", "sleb")
    (row,) = (tmp_path / "out" / "cache").iterdir()
    row.write_text("[{")
    second = compared(base, tmp_path / "out", "sleb")
    assert made == ["static"] * 2
    assert second.rows[0].nll_per_token == first.rows[0].nll_per_token


@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        (("router", "mod"), {"sparsities": (0.25, 0.5)}, "at most 0.333"),
        (("router", "laco"), {"sparsities": (0.9,)}, "at most 0.667"),
        (
            ("router+lora",),
            {"settings": {"lora_stage.targets": "nope"}},
            "targets that are no linear layers of this model: nope",
        ),
        (("router",), {"seeds": (0, 2**32)}, "below 4294967296"),
    ],
    ids=str,
)
def test_what_the_last_method_cannot_do_is_said_before_the_first_runs(
    methods: tuple[str, ...],
    options: dict[str, Any],
    words: str,
    base: Path,
    tmp_path: Path,
    made: list[str],
) -> None:
    with pytest.raises(ConfigError, match=words):
        compared(base, tmp_path / "out", *methods, **options)
    assert made == []


def test_a_file_in_the_place_of_the_folder_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="got a file; expected a folder"):
        compared(base, tmp_path / "out", "dense")
    assert (tmp_path / "out").read_text() == "mine"
