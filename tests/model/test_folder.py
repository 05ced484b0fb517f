"""What a name is that was given for a model is decided once, and said wherever it does not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import skipgpt
from command import skipgpt as command
from runs import ARGUMENTS, logits, make_checkpoint, rows, shared_checkpoint, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.errors import CheckpointError, ConfigError, SkipGPTError, UnsupportedModelError
from skipgpt.model.base import base_config, load_base
from skipgpt.model.loading.folder import kind_of_model
from skipgpt.serving.engine_selection import choose
from tiny import byte_tokenizer, tiny_base


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind; only read."""
    top = tmp_path_factory.mktemp("places")
    made = {name: top / name for name in ("merged", "engine", "run", "other", "file", "absent")}
    skipgpt.export_merged(shared_checkpoint(), made["merged"])
    for name in ("engine", "run", "other"):
        made[name].mkdir()
    (made["engine"] / "config.json").write_text('{"model_type": "nemotron-nas"}')
    (made["run"] / "run.json").write_text("{}")
    made["file"].write_text("text")
    checkpoint = shared_checkpoint()
    return made | {
        "checkpoint": checkpoint,
        "base": checkpoint.parent / "base",
        "adapter": checkpoint / "lora",
    }


WORDS = {
    "merged": "a merged export",
    "checkpoint": "a checkpoint",
    "engine": "a static export for vLLM",
    "adapter": "a PEFT adapter",
    "run": "a training run that has written no checkpoint yet",
    "other": "a folder without config.json",
    "file": "a file",
    "absent": "no such folder",
}


@pytest.mark.parametrize("kind", [*WORDS, "base"])
def test_each_kind_is_told(kind: str, places: dict[str, Path]) -> None:
    assert kind_of_model(places[kind]) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nano", "embedded"),
        ("meta-llama/Llama-3.1-8B", "remote"),
        ("gpt2", "remote"),
        ("./out", "absent"),
        ("..", "other"),
        ("a/b/c", "absent"),
        ("/nowhere", "absent"),
        ("model.gguf", "gguf"),
        ("nosuch/x", "remote"),
        ("./nosuch/x", "absent"),
        (Path("./nosuch/x"), "absent"),
    ],
)
def test_a_name_alone_tells(
    name: str | Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert kind_of_model(name) == kind


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_no_base_is_refused_as_what_it_is(kind: str, places: dict[str, Path]) -> None:
    for read in (load_base, base_config):
        with pytest.raises(UnsupportedModelError, match="expected a base model") as caught:
            read(str(places[kind]))
        assert caught.value.got == WORDS[kind]


def test_a_checkpoint_given_as_base_names_its_own(places: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        load_base(str(places["checkpoint"]))
    assert caught.value.todo.endswith(str(places["base"]))
    load_base(caught.value.todo.rpartition(" ")[-1])  # what it says to do


@pytest.mark.parametrize("kind", [*sorted(WORDS.keys() - {"checkpoint"}), "base"])
def test_what_is_no_checkpoint_is_refused_as_what_it_is(kind: str, places: dict[str, Path]) -> None:
    words = WORDS.get(kind, "a model without routers, as base models and static exports are")
    with pytest.raises(CheckpointError, match="expected a folder made by `skipgpt train`") as one:
        read_info(places[kind])
    assert one.value.got == f"{words} (no skipgpt_config.json)"
    if kind != "merged":
        with pytest.raises(CheckpointError, match=words):
            load(places[kind])
        with pytest.raises(CheckpointError, match=words):
            choose(places[kind], "transformers", None, None, [])


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_commands_that_take_a_base_refuse_a_merged_export_in_one_line(
    verb: str, places: dict[str, Path], tmp_path: Path
) -> None:
    text, out = str(write_documents(tmp_path)), str(tmp_path / "out")
    more = ARGUMENTS if verb == "train" else ("--sparsity", "0.25", "--methods", "router")
    done = command(verb, str(places["merged"]), "--data", text, "--out", out, *more)
    assert done.status == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "got a merged export" in done.stderr


def test_commands_that_take_a_checkpoint_refuse_a_merged_export_in_one_line(
    places: dict[str, Path], tmp_path: Path
) -> None:
    text, merged = str(write_documents(tmp_path)), str(places["merged"])
    for line in (
        ("bench", merged, "--data", text),
        ("show", merged),
        ("eval", merged, "--text", text),
        ("report", merged, "--data", text, "-o", str(tmp_path / "page.html")),
        ("export", merged, "--merged", "--out", str(tmp_path / "again")),
    ):
        done = command(*line)
        assert done.status == 1, line
        assert len(done.stderr.splitlines()) == 1, line
        assert "got a merged export (no skipgpt_config.json)" in done.stderr, line


def test_a_path_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    text = str(write_documents(tmp_path))
    for line in (
        ("generate", "./nosuch/x", "hi"),
        ("serve", "./nosuch/x", "--engine", "transformers"),
        ("bench", "./nosuch/x", "--data", text),
        ("show", "./nosuch/x"),
        ("eval", "./nosuch/x", "--text", text),
        ("report", "./nosuch/x", "--data", text),
        ("export", "./nosuch/x", "--merged", "--out", "again"),
    ):
        done = command(*line, folder=tmp_path)
        assert done.status == 1, line
        assert "got no such folder" in done.stderr, line
        assert "from the hub" not in done.stderr, line


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # transformers raises, or makes an empty one
def test_a_folder_without_a_tokenizer_is_told(family: str, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "merged"
    tiny_base(family, initializer_range=0.2).save_pretrained(base)
    with pytest.raises(UnsupportedModelError, match="without files of a tokenizer"):
        load_base(str(base))
    byte_tokenizer().save_pretrained(base)
    make_checkpoint(base, tmp_path / "checkpoint")
    skipgpt.export_merged(tmp_path / "checkpoint", out)
    skipgpt.register()
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "again")
    with pytest.raises(UnsupportedModelError) as caught:
        load(tmp_path / "again")
    assert caught.value.got == "a folder without files of a tokenizer"
    for name in re.findall(r"\w+\.json", caught.value.todo):  # what it says to do
        shutil.copy(out / name, tmp_path / "again")
    found, tokenizer = load(tmp_path / "again")
    assert torch.equal(logits(found), logits(load(out)[0]))
    assert tokenizer("cats").input_ids == byte_tokenizer()("cats").input_ids


def test_load_opens_a_merged_export_as_its_checkpoint(places: dict[str, Path]) -> None:
    for options in ({}, {"sparsity": 0.5}):
        found, _ = load(places["merged"], **options)
        wanted, _ = load(shared_checkpoint(), merge=True, **options)
        assert torch.equal(logits(found, rows(4)), logits(wanted, rows(4)))


@pytest.mark.parametrize("options", [{"base": "nano"}, {"trainable": True}])
def test_what_changes_nothing_for_a_merged_export_is_refused(
    options: dict[str, Any], places: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match="merged into it; "):
        load(places["merged"], **options)


def test_generate_takes_a_merged_export(places: dict[str, Path]) -> None:
    line = ("abc", "--max-new-tokens", "4", "--quiet")
    one, other = (
        command("generate", str(places[kind]), *line) for kind in ("merged", "checkpoint")
    )
    assert (one.status, one.stdout) == (0, other.stdout)


# Code beside the weights.


@pytest.fixture
def foreign(base_folder: Path, tmp_path: Path) -> SimpleNamespace:
    """A base with code of its own, which leaves a mark when it is run."""
    file, mark = base_folder / "config.json", tmp_path / "mark"
    code = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"model_type": "madeup", "auto_map": code})
    )
    (base_folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nC = M = None\n")
    return SimpleNamespace(folder=base_folder, mark=mark)


def test_code_beside_the_weights_is_neither_run_nor_asked_for(
    foreign: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("a question")

    monkeypatch.setattr("builtins.input", ask)
    for read in (load_base, base_config):
        with pytest.raises(UnsupportedModelError, match="code lies beside its weights") as caught:
            read(str(foreign.folder))
        assert "trust_remote_code" not in str(caught.value)
    assert not foreign.mark.exists()


# A base that has moved.


def test_a_base_that_has_moved_is_found_by_what_the_message_says(
    base_folder: Path, tmp_path: Path
) -> None:
    folder, there = tmp_path / "checkpoint", tmp_path / "there"
    model, _ = make_checkpoint(base_folder, folder)
    shutil.move(base_folder, there)
    text = str(write_documents(tmp_path))
    words = f"got nothing at {base_folder}"
    for line in (
        ("generate", str(folder), "abc"),
        ("bench", str(folder), "--data", text),
        ("train", str(folder), "--data", text, "--out", str(tmp_path / "out"), *ARGUMENTS),
        ("train", str(folder), "--dry-run"),
        ("export", str(folder), "--merged", "--out", str(tmp_path / "merged")),
    ):
        done = command(*line)
        assert (done.status, len(done.stderr.splitlines())) == (1, 1), line
        assert words in done.stderr, line
    with pytest.raises(SkipGPTError, match=words):
        choose(folder, "transformers", None, None, [])
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        load(folder)
    assert torch.equal(logits(load(folder, base=str(there))[0]), logits(model))
    file = folder / "skipgpt_config.json"
    assert f'write where it lies now as "base" into {file}' in caught.value.todo
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base": str(there)}))
    assert torch.equal(logits(load(folder)[0]), logits(model))
