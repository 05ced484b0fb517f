from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import served
from skipgpt.errors import ConfigError
from skipgpt.model.sparsity import at_sparsity
from skipgpt.model.state import count_routing, execution

TOKENS = 12
PROMPT = served.prompts(70, vocabulary=256)[0]
REASONS = ("from 0 to 0.95", "at most 0.75", "'much'", "True")
TRIES = ({}, {"sparsity": 0}, {"sparsity": 0.25}, {"sparsity": 0.75})


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Any]:
    folder = tmp_path / "tiny"
    return folder, served.tiny_routed_by_tokens("llama", folder)


def asked(*extras: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"prompt": PROMPT, "tokens": TOKENS, **extra} for extra in extras]


def test_requests_have_budgets_of_their_own_and_share_no_prefix_across_them(
    tiny: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = tiny
    wrong = [{"sparsity": value} for value in (2, 0.9, "much", True, None)]
    rounds = [
        asked(*TRIES),
        asked(*TRIES),
        asked({"sparsity": 0.5}, {"sparsity": 0.6}),
        asked(*wrong, {"sparsity": 0.25}),
        asked({}),
    ]
    ((first, again, other, refused, after),) = served.serve(
        tmp_path,
        {"options": {"model": str(folder)} | served.TOGETHER, "rounds": rounds},
        apart=True,
    )
    expected = [served.expected(model, request) for request in rounds[0]]
    assert len({tuple(tokens) for tokens in expected}) == len(TRIES)
    assert [answer["tokens"] for answer in first] == expected
    assert [answer["cached"] for answer in first] == [0] * len(TRIES)
    assert [answer["tokens"] for answer in again] == expected
    assert [answer["cached"] for answer in again] == [64] * len(TRIES)
    # 0.5 is what a request without a wish gets; 0.6 was never asked for.
    assert [answer["cached"] for answer in other] == [64, 0]
    for answer, said in zip(refused, REASONS, strict=False):
        assert said in answer["error"]
    assert [answer["tokens"] for answer in refused[4:]] == [expected[0], expected[2]]
    assert after[0]["tokens"] == expected[0]


@torch.no_grad()
def decoded_dense(model: Any, prompt: list[int]) -> list[int]:
    """The tokens where routers decide about the prompt alone."""
    made = model(input_ids=torch.tensor([prompt]), use_cache=True)
    tokens = [int(made.logits[0, -1].argmax())]
    with execution(model, "dense"):
        while len(tokens) < TOKENS:
            given = torch.tensor([tokens[-1:]])
            made = model(input_ids=given, past_key_values=made.past_key_values)
            tokens.append(int(made.logits[0, -1].argmax()))
    return tokens


def test_steps_that_decode_more_requests_than_asked_run_no_router(
    tiny: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = tiny
    other = served.prompts(50, vocabulary=256, seed=2)[0]
    options = {"model": str(folder), "additional_config": {"skipgpt_dense_above": 1}}
    pair = [{"prompt": each, "tokens": TOKENS} for each in (PROMPT, other)]
    ((together, alone),) = served.serve(
        tmp_path, {"options": options | served.SMALL, "rounds": [pair, asked({})]}
    )
    assert [answer["tokens"] for answer in together] == [
        decoded_dense(model, each) for each in (PROMPT, other)
    ]
    assert alone[0]["tokens"] == served.expected(model, {"prompt": PROMPT, "tokens": TOKENS})
    assert alone[0]["tokens"] != together[0]["tokens"]


@pytest.mark.parametrize("given", [-1, 1.5, True, "4"])
def test_a_wrong_number_of_requests_is_refused(given: Any) -> None:
    from skipgpt.serving.vllm.engine_config import dense_above

    with pytest.raises(ConfigError, match=r"skipgpt_dense_above.*a number of requests, 0 or more"):
        dense_above(SimpleNamespace(additional_config={"skipgpt_dense_above": given}))


@contextmanager
def server(folder: Path, log: Path, *more: str) -> Iterator[str]:
    """What `vllm serve` runs, on a free port, ready to answer; its address.

    The command itself asks for the version of a package `vllm`, which the one for CPUs is not.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    options += ["--max-model-len", "512", "--served-model-name", "tiny"]
    options += more
    counts = log.with_name("counts")
    counts.mkdir()
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(counts)
    with log.open("w", encoding="utf-8") as lines:
        process = subprocess.Popen(command + options, stdout=lines, stderr=lines, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, log.read_text(encoding="utf-8")[-6000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def complete(address: str, **more: Any) -> tuple[int, Any]:
    """Status and body of a completion."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, **more}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def metric(address: str, name: str) -> float:
    """The value of one of vLLM's metrics without labels."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def test_vllm_serve_takes_a_sparsity_over_http_and_counts_steps_without_routers(
    tiny: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = tiny
    with torch.no_grad(), count_routing(model) as counts:
        model(torch.tensor([PROMPT]))
    skipped = counts.sparsity() * len(PROMPT) * len(counts.keep_ratios())
    always = ("--additional-config", '{"skipgpt_dense_above": 0}')
    told = set()
    with server(folder, tmp_path / "log", *always) as address:
        # First, while no prefix is cached; modules of steps without routers count as run.
        assert complete(address)[0] == 200
        assert metric(address, "skipgpt_dense_steps_total") == TOKENS - 1
        assert metric(address, "skipgpt_skipped_total") == pytest.approx(skipped)
        for wish in TRIES:
            status, body = complete(address, **({"vllm_xargs": wish} if wish else {}))
            assert status == 200
            with at_sparsity(model, wish.get("sparsity", 0.5)):
                right = decoded_dense(model, PROMPT)
            assert body["choices"][0]["token_ids"] == right
            told.add(tuple(right))
        assert len(told) == len(TRIES)
        for value, said in ((0.9, "at most 0.75"), ("much", "a number")):
            status, body = complete(address, vllm_xargs={"sparsity": value})
            assert status == 400
            assert said in body["error"]["message"]
        assert complete(address)[0] == 200
