"""Which engine serves what, without starting one."""

from __future__ import annotations

import importlib.machinery
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.testing import CliRunner

from command import skipgpt
from runs import logits, shared_checkpoint
from skipgpt.cli import app
from skipgpt.errors import CheckpointError, ConfigError, MissingExtraError, ServingError
from skipgpt.export import export_merged
from skipgpt.serving.address import bind
from skipgpt.serving.serve import serve

SERVE = "skipgpt.serving.serve"


def _served(monkeypatch: pytest.MonkeyPatch, folder: Path, vllm: bool, **wanted: Any) -> Any:
    """What is started: the name of the engine, and what it is given."""
    spec = importlib.machinery.ModuleSpec("vllm", None) if vllm else None
    monkeypatch.setattr("skipgpt.serving.engine_selection.find_spec", lambda name: spec)
    started = []
    with (
        mock.patch(f"{SERVE}.run_server", lambda *a, **k: started.append(("transformers", a, k))),
        mock.patch(
            "skipgpt.serving.vllm.launch.launch",
            lambda *a, **k: started.append(("vllm", a, k, _contents(a[0]))),
        ),
    ):
        serve(folder, port=0, **wanted)
    return started[0]


def _contents(folder: Path) -> tuple[set[str], Any]:
    files = {path.name for path in folder.iterdir()}
    return files, json.loads((folder / "config.json").read_text())


def test_vllm_serves_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, (folder, _), given, (files, config) = _served(
        monkeypatch, shared_checkpoint(), True, sparsity=0.5, vllm_options=["--seed", "3"]
    )
    assert engine == "vllm"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not folder.exists()  # it was merged for this run
    assert config["sparsity"] == 0.5
    assert given["more"] == ["--seed", "3"]
    assert given["name"] == "checkpoint"


@pytest.mark.parametrize(("vllm", "engine"), [(False, "auto"), (True, "transformers")])
def test_transformers_serves_elsewhere_and_on_request(
    monkeypatch: pytest.MonkeyPatch, vllm: bool, engine: str
) -> None:
    assert _served(monkeypatch, shared_checkpoint(), vllm, engine=engine)[0] == "transformers"


def test_a_merged_export_is_served_as_the_checkpoint_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export_merged(shared_checkpoint(), tmp_path / "merged")
    engine, (model, _, _), given = _served(
        monkeypatch, tmp_path / "merged", False, sparsity=0.5, name="cats"
    )
    assert (engine, given["name"]) == ("transformers", "cats")
    _, (own, _, _), _ = _served(monkeypatch, shared_checkpoint(), False, sparsity=0.5)
    assert logits(model).equal(logits(own))
    assert _served(monkeypatch, tmp_path / "merged", True)[0] == "vllm"


def test_what_vllm_cannot_run_goes_to_transformers_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = {"quantize": "int8"}
    assert _served(monkeypatch, shared_checkpoint(), True, **wanted)[0] == "transformers"
    assert "vLLM is installed and cannot run this (quantize=)" in caplog.text
    with pytest.raises(ConfigError, match="engine transformers"):
        _served(monkeypatch, shared_checkpoint(), True, engine="vllm", **wanted)
    folder = tmp_path / "gpt2"
    folder.mkdir()
    config = {"model_type": "skipgpt_gpt2", "router": {"kv": "dense"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="a model of the family gpt2"):
        _served(monkeypatch, folder, True, engine="vllm")


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ({"engine": "vllm"}, MissingExtraError, r"pip install 'skipgpt\[vllm\]'"),
        ({"engine": "tgi"}, ConfigError, "auto, vllm or transformers"),
        ({"vllm_options": ["--seed", "3"]}, ConfigError, "options of vLLM: --seed 3"),
        ({"vllm_options": ["--port=3"]}, ConfigError, "its own option, before the --"),
        ({"api_key": ""}, ConfigError, "give --api-key"),
        ({"host": "*"}, ConfigError, "listening on *"),
        ({"host": "a..b"}, ConfigError, "listening on a..b"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        _served(monkeypatch, shared_checkpoint(), False, **wanted)


def test_an_empty_key_in_the_environment_is_no_open_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SKIPGPT_API_KEY", "")
    done = CliRunner().invoke(app, ["serve", str(shared_checkpoint()), "--port", "0"])
    assert "reading the API key: got an empty one" in str(done.exception)


def test_without_the_extra_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setattr("skipgpt.serving.engine_selection.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[serve\]'"):
        serve(shared_checkpoint(), port=0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"quantization_config": {"bits": 8}}, "quantised weights"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of kinds"),
        ({"router": {"kv": "skip"}}, "kv: skip"),
        ({"router": {"decides": "sequence"}}, "whole sequence"),
    ],
)
def test_what_an_engine_would_refuse_a_minute_later_is_known_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    config = {"model_type": "skipgpt_qwen2", "router": {}} | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=why):
        _served(monkeypatch, tmp_path, True, engine="vllm")


def test_a_sparsity_beyond_the_dial_is_refused_before_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export_merged(shared_checkpoint(), tmp_path / "merged")
    for folder in (shared_checkpoint(), tmp_path / "merged"):
        with pytest.raises(ConfigError, match=r"at most 0\.(79|80)"):
            _served(monkeypatch, folder, True, sparsity=0.9)


def test_a_signal_while_merging_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def interrupted(folder: Path, out: str, **_: Any) -> None:
        made.append(Path(out))
        (Path(out) / "model.safetensors").write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(f"{SERVE}.export_merged", interrupted)
    with pytest.raises(SystemExit):
        _served(monkeypatch, shared_checkpoint(), True)
    assert made
    assert not made[0].exists()


def test_a_server_for_everybody_without_a_key_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _served(monkeypatch, shared_checkpoint(), False)
    assert "no API key" not in caplog.text
    _served(monkeypatch, shared_checkpoint(), False, host="0.0.0.0")
    assert "whoever reaches 0.0.0.0 can use this server: no API key is set" in caplog.text


@pytest.mark.parametrize("config", [None, "{", "[]", '{"model_type": "llama"}'])
def test_a_folder_without_routers_is_refused(tmp_path: Path, config: str | None) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="skipgpt export --merged"):
        serve(tmp_path)
    done = skipgpt("serve", tmp_path)
    assert done.status == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("VLLM_PLUGINS", ""), ("VLLM_PLUGINS", "lora,other"), ("VLLM_USE_V2_MODEL_RUNNER", "1")],
)
def test_settings_that_keep_the_plug_in_out_of_vllm_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert _served(monkeypatch, shared_checkpoint(), True)[0] == "transformers"
    assert name in caplog.text
    with pytest.raises(ConfigError, match=name):
        _served(monkeypatch, shared_checkpoint(), True, engine="vllm")


def test_the_plug_in_may_be_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other,skipgpt")
    assert _served(monkeypatch, shared_checkpoint(), True)[0] == "vllm"


@pytest.mark.parametrize("vllm", [False, True])
def test_allowed_origins_reach_either_engine(monkeypatch: pytest.MonkeyPatch, vllm: bool) -> None:
    origins = ["https://chat.example"]
    found = _served(monkeypatch, shared_checkpoint(), vllm, allowed_origins=origins)
    assert found[2]["allowed_origins"] == tuple(origins)


def test_what_vllm_is_started_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The model alone decides, and no web page may ask unless it is named."""
    from skipgpt.serving.vllm import launch as launching

    started: list[list[str]] = []

    class Process:
        pid = 0

        def __init__(self, command: list[str], **options: Any) -> None:
            started.append(command)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def poll(self) -> int:
            return 0

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(launching.subprocess, "Popen", Process)
    given: dict[str, Any] = {"name": "m", "api_key": None, "shown": "m", "grace": 1}
    for origins in ((), ("https://chat.example",)):
        with bind("127.0.0.1", 0) as address, pytest.raises(ServingError):
            launching.launch(tmp_path, address, dtype="float32", allowed_origins=origins, **given)
        options = dict(itertools.pairwise(started[-1]))
        assert options["--generation-config"] == "vllm"
        assert json.loads(options["--allowed-origins"]) == list(origins)
