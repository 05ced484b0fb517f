"""A GGUF file is a base like any other: trained, saved, loaded, measured, compared and exported."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer

import skipgpt
from command import skipgpt as command
from gguf_files import EOS, Q8_0, gguf_llama, write_gguf
from runs import ARGUMENTS, compared, logits, run, tiny_config, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipgpt.model.base import load_base
from skipgpt.model.loading.fingerprint import fingerprint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with LoRA on a file of 8-bit weights, `model.gguf`, which lies beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_gguf(folder / "model.gguf", kind=Q8_0)
    config = tiny_config("default", stages="router,lora", router_stage__steps=2)
    run(folder / "model.gguf", folder / "checkpoint", config)
    return folder / "checkpoint"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be changed; its base stays where it was."""
    return Path(shutil.copytree(trained, tmp_path / "checkpoint"))


def _base(trained: Path) -> Path:
    return trained.parent / "model.gguf"


# Training and loading.


def test_the_checkpoint_names_the_file_and_its_weights(trained: Path) -> None:
    info = read_info(trained)
    assert info.base == str(_base(trained))
    assert info.quantization is None
    assert info.stages == ("router", "lora")
    wanted = gguf_llama()
    with torch.no_grad():
        for parameter in wanted.parameters():
            if parameter.ndim == 2:
                packed = quantize(parameter.numpy(), Q8_0)
                parameter.copy_(torch.from_numpy(dequantize(packed, Q8_0)))
    assert info.fingerprint == fingerprint(wanted)
    made = json.loads((trained / "run.json").read_text())
    assert made["versions"]["gguf"]


def test_a_relative_name_is_loaded_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(Path("model.gguf"))
    run(Path("model.gguf"), Path("out"), tiny_config(router_stage__steps=1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load("../out")


def test_a_checkpoint_whose_file_has_moved_is_given_the_new_place(
    checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    expected = logits(load(checkpoint)[0])
    path = checkpoint / "skipgpt_config.json"
    gone = str(tmp_path / "gone.gguf")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": gone}))
    with pytest.raises(UnsupportedModelError, match="loading the base model") as caught:
        load(checkpoint)
    assert caught.value.got == f"nothing at {gone}"
    moved = shutil.copy(_base(trained), tmp_path / "moved.gguf")
    assert torch.equal(logits(load(checkpoint, base=moved)[0]), expected)


def test_another_file_is_not_the_base(checkpoint: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", gguf_llama(seed=1))
    with pytest.raises(CheckpointError, match=r"with fingerprint [0-9a-f-]{33}; expected"):
        load(checkpoint, base=str(other))


def test_the_same_weights_in_a_folder_are_the_same_base(
    checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    base, tokenizer = load_base(str(_base(trained)))
    base.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    model, _ = load(checkpoint, base=str(tmp_path / "folder"))
    assert torch.equal(logits(model), logits(load(checkpoint)[0]))


def test_a_checkpoint_is_trained_further(checkpoint: Path, trained: Path, tmp_path: Path) -> None:
    data = str(trained.parent / "stories.jsonl")
    config = tiny_config("default", stages="lora", lora_stage__steps=1)
    result = skipgpt.train(str(checkpoint), [data], tmp_path / "further", config)
    assert result.info.base == str(_base(trained))


def test_quantising_is_refused_before_anything_is_written(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="to 4bit: got a GGUF file"):
        run(_base(trained), tmp_path / "out", quantize="4bit")
    assert not (tmp_path / "out").exists()


# Exports.


def test_a_merged_export_is_an_ordinary_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, tokenizer = load(trained, merge=True)
    skipgpt.export_merged(trained, tmp_path / "merged")
    text = (tmp_path / "merged" / "config.json").read_text()
    assert "gguf" not in text
    assert "quantization_config" not in text
    monkeypatch.setitem(sys.modules, "gguf", None)
    skipgpt.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model), logits(expected))
    again = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert again("cats<|end|>").input_ids == tokenizer("cats<|end|>").input_ids
    assert again.eos_token_id == EOS


def test_a_static_export_is_an_ordinary_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [str(trained.parent / "stories.jsonl")]
    result = skipgpt.export_static(
        trained, tmp_path / "static", data=data, keep_rate=1.0, cutting=tiny_config().data
    )
    assert result.removed
    monkeypatch.setitem(sys.modules, "gguf", None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "static")
    assert model.config.num_hidden_layers == result.layers_after < 3
    assert not hasattr(model.config, "quantization_config")


# Commands.


def test_the_commands_run_on_it(tmp_path: Path) -> None:
    base, data, out = write_gguf(tmp_path / "model.gguf"), write_documents(tmp_path), tmp_path / "o"
    train = ("train", base, "--data", data, *ARGUMENTS)
    done = command(*train, "--dry-run")
    assert done.status == 0, done.stderr
    done = command(*train, "--out", out, "--set", "router_stage.steps=1")
    assert done.status == 0, done.stderr
    assert "de-quantizing" not in done.stderr  # a progress bar, which no terminal shows here
    for arguments in (
        ("show", out),
        ("show", out, "--text", data, "--base", base, "--block-size", 16),
        ("eval", out, "--text", data, "--block-size", 16),
        ("generate", out, "cats", "--max-new-tokens", 3),
        ("export", out, "--merged", "--out", tmp_path / "merged"),
    ):
        done = command(*arguments)
        assert done.status == 0, (arguments, done.stderr)
        assert done.stdout.strip()


def test_it_is_compared(trained: Path, tmp_path: Path) -> None:
    result = compared(_base(trained), tmp_path / "out", "router", "shortgpt")
    assert {row.method for row in result.rows} >= {"router", "shortgpt"}
    assert result.facts["base"] == str(_base(trained))


@pytest.mark.parametrize("content", [None, b"not a model", b"GGUF\x03\0\0\0"])
def test_a_command_says_what_is_wrong_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    base, data = tmp_path / "model.gguf", write_documents(tmp_path)
    if content is not None:
        base.write_bytes(content)
    train = ("train", base, "--data", data)
    for arguments in ((*train, "--dry-run"), (*train, "--out", tmp_path / "out", *ARGUMENTS)):
        done = command(*arguments)
        assert done.status == 1
        assert "Traceback" not in done.stderr
        line = done.stderr.strip()
        assert "GGUF file" in line
        assert "the path" in line or "the file again" in line
    assert not (tmp_path / "out").exists()
