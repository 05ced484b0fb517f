"""Errors of exports, pages, servers and folders in Python: each is caused, and followed."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import skipgpt
import zoo
from following import advised
from made_world import world
from runs import shared_checkpoint
from skipgpt.config import DataConfig
from skipgpt.export.decilm import check_servable
from skipgpt.export.rebuild import check_movable
from skipgpt.generation import generate
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers, routers
from skipgpt.report.writing import write
from skipgpt.routing.decision import Site
from skipgpt.routing.router import set_constant
from skipgpt.serving.address import bind
from skipgpt.system.atomic import staged
from skipgpt.system.device_profile import store_profile, typical
from tiny import byte_tokenizer, tiny_base, tiny_routed


def test_a_model_that_cannot_lose_layers_is_exported_whole(tmp_path: Path) -> None:
    placed = add_routers(zoo.build("gpt2"))  # scales attention by the index of the layer
    with advised("export/rebuild.py", "use `skipgpt export --merged`, which keeps every layer"):
        check_movable(placed)
    with advised(
        "export/decilm.py", "leave --format out: vLLM loads the smaller model of the base"
    ):
        check_servable(tiny_base("gemma"))
    check_movable(add_routers(tiny_base("gemma")))
    wrong = mock.patch("skipgpt.export.static.torch.finfo", return_value=mock.Mock(eps=-1.0))
    options: dict[str, Any] = {
        "data": [str(world() / "good.jsonl")],
        "keep_rate": 0.9,
        "cutting": DataConfig(block_size=16),
    }
    advice = "use --merged; a layer of this model depends on its place"
    with wrong, advised("export/static.py", advice):
        skipgpt.export_static(shared_checkpoint(), tmp_path / "small", **options)
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "small")


def test_one_module_alone_goes_in_the_form_for_vllm(tmp_path: Path) -> None:
    model, _ = skipgpt.load(shared_checkpoint())
    for site, router in routers(model).items():
        set_constant(router, -1.0 if site == Site(1, "mlp") else 1.0)
    routing_state(model).curves = None
    skipgpt.save(model, tmp_path / "checkpoint")
    options: dict[str, Any] = {
        "data": [str(world() / "good.jsonl")],
        "cutting": DataConfig(block_size=16),
    }
    with advised("export/choosing.py", "or use --format vllm, where either may go alone"):
        skipgpt.export_static(tmp_path / "checkpoint", tmp_path / "small", **options)
    skipgpt.export_static(tmp_path / "checkpoint", tmp_path / "small", form="vllm", **options)


def test_a_server_takes_another_address() -> None:
    advice = "name another --port or --host; port 0 takes a free one"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with advised("serving/address.py", advice), bind("127.0.0.1", port):
            pass
        with bind("127.0.0.1", 0), bind("127.0.0.2", port):
            pass


def test_a_folder_that_cannot_be_made_is_named_anew(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with advised("system/atomic.py", "name another folder"), staged(tmp_path / "file" / "out"):
        pass
    with staged(tmp_path / "out") as stage:
        (stage / "a").write_text("b")
    with advised("report/writing.py", "name a file with -o"):
        write(tmp_path, b"")
    write(tmp_path / "page.html", b"")


def test_a_profile_is_kept_in_a_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    cpu = torch.device("cpu")
    monkeypatch.setenv("SKIPGPT_CACHE", str(tmp_path / "file" / "cache"))
    advice = "set SKIPGPT_CACHE to a folder that can be written"
    with advised("system/device_profile.py", advice):
        store_profile(typical(cpu), cpu, torch.float32)
    with monkeypatch.context() as homeless:
        homeless.delenv("SKIPGPT_CACHE")
        homeless.delenv("XDG_CACHE_HOME", raising=False)
        homeless.setattr(Path, "home", mock.Mock(side_effect=RuntimeError("no home")))
        with advised("system/device_profile.py", advice):
            store_profile(typical(cpu), cpu, torch.float32)
    monkeypatch.setenv("SKIPGPT_CACHE", str(tmp_path / "cache"))
    store_profile(typical(cpu), cpu, torch.float32)


def test_a_prompt_is_given_in_utf_8() -> None:
    prompt = os.fsdecode(b"caf\xe9")
    with advised("generation/text.py", "set LC_ALL=C.UTF-8 and give the prompt in UTF-8"):
        generate(tiny_routed(), byte_tokenizer(), prompt, max_new_tokens=1)
    generate(tiny_routed(), byte_tokenizer(), "café", max_new_tokens=1)
