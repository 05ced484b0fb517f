"""`skipgpt serve` on vLLM, from a checkpoint, with the openai client."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from running_server import CONTEXT, KEY, Server, checkpoint_with_chat, serving_afresh, streamed
from served import size_of
from skipgpt.checkpoint.loading import load
from skipgpt.generation import generate
from skipgpt.model.sparsity import at_sparsity

OPTIONS = ("--engine", "vllm", "--", "--max-num-seqs", 16, "--block-size", 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = size_of("llama") | {"max_position_embeddings": CONTEXT}
    return checkpoint_with_chat(tmp_path_factory.mktemp("served"), **size)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving_afresh(folder, *OPTIONS, VLLM_CPU_KVCACHE_SPACE="1") as running:
        yield running


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load(folder, merge=True)


def _alone(loaded: Any, prompt: str, sparsity: float) -> Any:
    model, tokenizer = loaded
    with at_sparsity(model, sparsity):
        return generate(model, tokenizer, prompt, max_new_tokens=24)


def test_sixteen_streams_of_different_sparsity_are_those_of_transformers(
    server: Server, loaded: Any
) -> None:
    asked = [(f"Story {n}", (0.0, 0.25, 0.5)[n % 3]) for n in range(16)]

    def stream(prompt: str, sparsity: float) -> str:
        extra = {"sparsity": sparsity}
        return streamed(server.complete(prompt, stream=True, extra_body=extra))

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda each: stream(*each), asked))
    # Of a letter that is cut off at the end, vLLM shows nothing.
    alone = [_alone(loaded, *each).text.rstrip("\N{REPLACEMENT CHARACTER}") for each in asked]
    assert [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in together] == alone


def test_metrics_show_the_sparsity_of_a_request(server: Server, loaded: Any) -> None:
    names = ("skipgpt_decisions_total", "skipgpt_skipped_total", "vllm:generation_tokens_total")
    prompt = "A text that no cache knows"
    before = [server.metric(name) for name in names]
    server.complete(prompt, extra_body={"sparsity": 0.5})
    decisions, skipped, tokens = (
        server.metric(name) - was for name, was in zip(names, before, strict=True)
    )
    alone = _alone(loaded, prompt, 0.5)
    assert tokens == alone.new_tokens
    assert skipped / decisions == pytest.approx(alone.sparsity)


def test_chat_stops_and_logprobs(server: Server) -> None:
    messages: Any = [{"role": "user", "content": "What do cats do?"}]
    given: Any = {"model": "tiny", "messages": messages, "max_tokens": 16, "temperature": 0}
    chat = server.client().chat.completions
    whole = chat.create(**given, logprobs=True, top_logprobs=2, extra_body={"sparsity": 0.5})
    text = whole.choices[0].message.content
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens == 16
    cut = chat.create(**given, stop=[text[5:7]], extra_body={"sparsity": 0.5})
    assert cut.choices[0].message.content == text[: text.index(text[5:7])]


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ({"extra_body": {"sparsity": 0.9}}, openai.BadRequestError, "at most 0.80"),
        ({"extra_body": {"sparsity": "half"}}, openai.BadRequestError, "expected a number"),
        ({"prompt": "x" * (CONTEXT + 1)}, openai.BadRequestError, "8192"),
        ({"max_tokens": "many"}, openai.BadRequestError, "max_tokens"),
        ({"model": "other"}, openai.NotFoundError, "other"),
    ],
)
def test_what_cannot_be_done_is_refused(
    server: Server, wanted: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        server.complete(**wanted)


def _refusal(request: Request) -> int:
    with pytest.raises(HTTPError) as refused:
        urlopen(request)
    refused.value.close()
    return refused.value.code


@pytest.mark.parametrize("key", ["another key", ""])
def test_without_the_right_key_nothing_is_answered(server: Server, key: str) -> None:
    request = Request(f"{server.url}/models")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    assert _refusal(request) == 401


@pytest.mark.parametrize("body", [b'{"prompt": "a", ', b"[1]", b"", b'{"use_beam_search": true, '])
def test_a_body_that_is_no_request_is_refused(server: Server, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    assert _refusal(Request(f"{server.url}/completions", body, headers)) in (400, 422)


def test_beams_take_no_sparsity(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="beam search takes no sparsity"):
        server.complete(extra_body={"use_beam_search": True, "n": 2, "sparsity": 0.5})


def test_a_client_that_leaves_ends_its_request(server: Server) -> None:
    stream = server.complete(max_tokens=CONTEXT - 100, stream=True)
    next(iter(stream))
    stream.close()
    assert server.complete().usage.completion_tokens == 24
    assert server.metric("vllm:generation_tokens_total") < CONTEXT / 2


def test_ctrl_c_lets_a_running_stream_finish(server: Server) -> None:
    stream = iter(server.complete(max_tokens=200, stream=True))
    chunks = [next(stream)]
    os.killpg(server.process.pid, signal.SIGINT)  # to the whole group, as a terminal does
    chunks += stream
    assert [chunk for chunk in chunks if chunk.choices][-1].choices[0].finish_reason == "length"
    assert server.ended()[0] == 0
