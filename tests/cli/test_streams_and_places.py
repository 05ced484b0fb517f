"""Standard output under --json, and folders of any name, or that cannot be written."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from command import skipgpt
from runs import ARGUMENTS, logits, run, shared_checkpoint, tiny_config, write_documents
from skipgpt.benchmark.shapes import shape_or_base
from skipgpt.checkpoint.loading import load
from skipgpt.cli.shared.options import emit
from skipgpt.errors import UnsupportedModelError


def _libraries_that_print() -> None:
    """Let loading a tokenizer write to standard output in every way there is."""
    original = AutoTokenizer.from_pretrained

    def noisy(*args: Any, **kwargs: Any) -> Any:
        sys.stdout.write("printed\n")
        os.write(1, b"past Python\n")
        warnings.warn("warned", UserWarning, stacklevel=1)
        return original(*args, **kwargs)

    AutoTokenizer.from_pretrained = noisy


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "CHECKPOINT", "x", "--max-new-tokens", "1"),
        ("eval", "CHECKPOINT", "--text", "TEXT", "--max-tokens", "64", "--block-size", "16"),
        ("export", "CHECKPOINT", "--merged", "--out", "OUT"),
    ],
    ids=lambda command: command[0],
)
def test_json_is_one_document_whatever_libraries_print(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    places = {
        "CHECKPOINT": shared_checkpoint(),
        "TEXT": write_documents(tmp_path),
        "OUT": tmp_path / "out",
    }
    words = [places.get(word, word) for word in command]
    done = skipgpt(*words, "--json", before=_libraries_that_print)
    assert done.status == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert "printed\n" in done.stderr
    assert "past Python\n" in done.stderr


def test_numbers_that_json_lacks_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"rows": [{"nll": math.nan, "high": math.inf, "n": 2}]}, True, "")
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed == {"rows": [{"nll": None, "high": None, "n": 2}]}


def _ascii_only() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


def test_a_name_that_a_terminal_cannot_show_costs_no_result(tmp_path: Path) -> None:
    out = tmp_path / "größer und kleiner" / "ä"
    done = skipgpt("export", shared_checkpoint(), "--merged", "--out", out, before=_ascii_only)
    assert done.status == 0, done.stderr
    assert "gr\\xf6\\xdfer und kleiner" in done.stdout
    assert (out / "config.json").is_file()


def test_spaces_and_letters_beyond_ascii_are_names_like_others(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "mein Ordner größer [1]"
    home.mkdir()
    base_folder.rename(home / "bäse модель")
    monkeypatch.setenv("SKIPGPT_CACHE", str(home / "cäche"))
    config = tiny_config("default", stages="fit,lora", router__stand_in=2)
    result = run(home / "bäse модель", home / "öut 1", config)
    assert result.folder == str(home / "öut 1")
    model = load(home / "öut 1")[0]
    page = home / "Bericht 1.html"
    text = write_documents(home, "Tëxt 1.jsonl")
    cut = ("--block-size", "16", "--max-tokens", "64")
    done = skipgpt("report", home / "öut 1", "--data", text, *cut, "-o", page)
    assert done.status == 0, done.stderr
    assert "bäse модель" in page.read_text(encoding="utf-8")
    done = skipgpt("export", home / "öut 1", "--merged", "--out", home / "gänze")
    assert done.status == 0, done.stderr
    assert torch.isfinite(logits(model)).all()


def _cache_at(place: str) -> None:
    os.environ["SKIPGPT_CACHE"] = place


def test_without_a_cache_folder_a_fit_is_made_and_a_profile_refused_at_once(
    base_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    here = functools.partial(_cache_at, str(tmp_path / "file" / "cache"))
    data = write_documents(tmp_path)
    out = ("--out", tmp_path / "out", *ARGUMENTS, "--stages", "fit", "--json")
    done = skipgpt("train", base_folder, "--data", data, *out, before=here)
    assert done.status == 0, done.stderr
    (said,) = (line for line in done.stderr.splitlines() if "the fit is not kept" in line)
    assert said.endswith("; set SKIPGPT_CACHE to a folder that can be written")
    assert "another folder" not in said
    assert "damaged" not in done.stderr
    there = functools.partial(_cache_at, str(tmp_path / "cache"))
    done = skipgpt("train", base_folder, "--data", data, *out, "--overwrite", before=there)
    assert done.status == 0, done.stderr
    assert "the fit is not kept" not in done.stderr
    assert list((tmp_path / "cache" / "fits").iterdir())
    refused = skipgpt("profile", before=here)
    assert (refused.status, refused.stdout) == (1, "")
    assert refused.stderr.endswith("; set SKIPGPT_CACHE to a folder that can be written\n")


def _no_room() -> None:
    """Let standard output be a full device."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        ("show", "--json"),
        ("show",),
        ("generate", "x", "--max-new-tokens", "1", "-q"),
        ("generate", "x", "--max-new-tokens", "1", "--show-routing", "-q"),
    ],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_an_error_of_one_line(command: tuple[str, ...]) -> None:
    done = skipgpt(command[0], shared_checkpoint(), *command[1:], before=_no_room)
    said = "skipgpt: writing to standard output: got No space left on device; expected a terminal"
    assert (done.status, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(said)


@pytest.mark.parametrize("flags", [(), ("--show-routing",)], ids=["plain", "routing"])
def test_a_prompt_of_another_encoding_is_refused(flags: tuple[str, ...]) -> None:
    prompt = os.fsdecode(b"caf\xe9")  # as Python reads an argument that is not in UTF-8
    done = skipgpt("generate", shared_checkpoint(), prompt, "-q", *flags)
    assert (done.status, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "reading the prompt: got a prompt in which a surrogate stands alone" in done.stderr


def test_a_cache_that_cannot_be_made_is_refused_with_advice() -> None:
    asked = ("--tasks", "piqa", "--use-cache", "/proc/x")
    done = skipgpt("eval", shared_checkpoint(), *asked, "-q")
    assert (done.status, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "expected a folder that can be made and written to; name another --us" in done.stderr


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_letters_that_the_output_lacks_are_escaped_and_bytes_of_paths_kept(errors: str) -> None:
    program = (
        "import io, sys, skipgpt.cli as cli\n"
        "from skipgpt.cli.shared.options import begin\n"
        f"sys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'ascii', {errors!r})\n"
        "cli.app = lambda: (begin(quiet=True), print('gr\\xf6\\xdfe \\udce9'))\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"gr\\xf6\\xdfe \xe9\n"), done.stderr


def test_a_signal_before_the_command_runs_is_one_line() -> None:
    program = (
        "import os, signal, skipgpt.cli as cli\n"
        "cli.app = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "skipgpt: interrupted; the same command starts again\n"


def test_a_folder_is_not_taken_for_a_shape_of_a_like_name(tmp_path: Path) -> None:
    (tmp_path / "llama-1").mkdir()
    with pytest.raises(UnsupportedModelError) as told:
        shape_or_base(str(tmp_path / "llama-1"))
    assert "shapes of a like name" not in str(told.value)
    with pytest.raises(UnsupportedModelError, match="shapes of a like name: llama-160m"):
        shape_or_base("llama-1")
