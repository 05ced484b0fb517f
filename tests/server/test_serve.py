import http.client
import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from command import skipgpt
from running_server import CONTEXT, KEY, Server, checkpoint_with_chat, serving, streamed
from skipgpt.checkpoint.loading import load
from skipgpt.generation import generate
from skipgpt.model.sparsity import at_sparsity
from skipgpt.serving.app import build_app
from skipgpt.serving.engine import Engine
from skipgpt.serving.metrics import Metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_with_chat(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load(folder, merge=True)


def _alone(loaded: Any, prompt: str, sparsity: float = 0.25, tokens: int = 24) -> Any:
    model, tokenizer = loaded
    with at_sparsity(model, sparsity):
        return generate(model, tokenizer, prompt, max_new_tokens=tokens)


def test_it_is_bound_to_loopback_and_says_where(server: Server) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert json.loads(server.text("/health")) == {"status": "ok"}


def test_the_model_is_listed_under_the_name_of_its_folder(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert server.client().models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        server.client().models.retrieve("other")


@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_a_completion_is_what_generate_gives(
    server: Server, loaded: Any, sparsity: float | None
) -> None:
    extra = {} if sparsity is None else {"sparsity": sparsity}
    answer, alone = (
        server.complete(extra_body=extra),
        _alone(loaded, "The cats", sparsity or 0.25),
    )
    assert answer.choices[0].text == alone.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == alone.new_tokens
    assert answer.usage.prompt_tokens == len("The cats")
    assert answer.skipgpt["sparsity"] == pytest.approx(alone.sparsity)


def test_a_completion_names_what_its_sparsity_counts(server: Server, loaded: Any) -> None:
    answer = server.complete(extra_body={"sparsity": 0.3, "budget": "flops"})
    model, tokenizer = loaded
    with at_sparsity(model, 0.3, budget="flops"):
        alone = generate(model, tokenizer, "The cats", max_new_tokens=24)
    assert answer.choices[0].text == alone.text
    assert answer.skipgpt["sparsity"] == pytest.approx(alone.sparsity)


@pytest.mark.parametrize("prompt", [["The cats"], list(b"abc"), [list(b"abc")]])
def test_a_prompt_may_be_tokens_or_a_list_of_one(server: Server, prompt: Any) -> None:
    assert server.complete(prompt).usage.completion_tokens == 24


def test_sampling_repeats_itself_with_a_seed(server: Server) -> None:
    once, again, other = (
        server.complete(temperature=1.5, top_p=0.9, seed=seed).choices[0].text for seed in (7, 7, 8)
    )
    assert once == again != other


def test_sixteen_streams_at_once_are_those_of_one_after_the_other(
    server: Server, loaded: Any
) -> None:
    asked = [(f"Story {n}", (0.0, 0.25, 0.5)[n % 3]) for n in range(16)]

    def stream(prompt: str, sparsity: float) -> str:
        extra = {"sparsity": sparsity}
        return streamed(server.complete(prompt, stream=True, extra_body=extra))

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda each: stream(*each), asked))
    assert together == [_alone(loaded, *each).text for each in asked]
    assert len(set(together)) > 8


def test_a_stream_ends_with_its_reason_and_on_request_its_usage(server: Server) -> None:
    whole = server.complete()
    chunks = list(server.complete(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] == "length"
    assert not any(reasons[:-1])
    assert len(chunks) > 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_ends_the_text(server: Server, stream: bool) -> None:
    whole = server.complete().choices[0].text
    stop = whole[9:11]
    answer = server.complete(stop=[stop, "never there"], stream=stream)
    text = streamed(answer) if stream else answer.choices[0].text
    assert text == whole[: whole.index(stop)]


def test_logprobs_are_those_of_the_chosen_tokens(server: Server) -> None:
    answer = server.complete(logprobs=3).choices[0]
    logs = answer.logprobs
    assert len(logs.tokens) == len(logs.token_logprobs) == 24
    assert logs.text_offset[0] == 0
    assert sorted(logs.text_offset) == logs.text_offset
    for value, top in zip(logs.token_logprobs, logs.top_logprobs, strict=True):
        assert value == max(top.values()) <= 0  # greedy
    streams = server.complete(logprobs=3, stream=True)
    chunks = [chunk.choices[0].logprobs for chunk in streams]
    assert [v for each in chunks if each for v in each.token_logprobs] == logs.token_logprobs


def test_a_chat_goes_through_the_template(server: Server, loaded: Any) -> None:
    parts = [{"type": "text", "text": "What do "}, {"type": "text", "text": "cats do?"}]
    messages: Any = [{"role": "system", "content": "Short."}, {"role": "user", "content": parts}]
    prompt = "system: Short.\nuser: What do \ncats do?\nassistant:"  # a part, a line, as in vLLM
    given: Any = {"model": "tiny", "messages": messages, "max_tokens": 16, "temperature": 0}
    client = server.client().chat.completions
    answer = client.create(**given, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == _alone(loaded, prompt, tokens=16).text
    places = answer.choices[0].logprobs.content
    assert len(places) == 16
    assert all(place.logprob == place.top_logprobs[0].logprob for place in places)
    chunks = list(client.create(**given, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == answer.choices[0].message.content


def test_a_client_that_leaves_ends_its_request(server: Server) -> None:
    before = server.metric("skipgpt_cancelled_total")
    stream = server.complete(max_tokens=CONTEXT - 100, stream=True)
    next(iter(stream))
    stream.close()
    made = server.metric("skipgpt_generated_tokens_total")
    assert server.complete().usage.completion_tokens == 24
    assert server.metric("skipgpt_cancelled_total") == before + 1
    assert server.metric("skipgpt_generated_tokens_total") - made < CONTEXT / 2
    assert server.metric("skipgpt_running") == server.metric("skipgpt_waiting") == 0


def test_metrics_count_tokens_and_what_was_skipped(server: Server) -> None:
    names = ("skipgpt_decisions_total", "skipgpt_skipped_total", "skipgpt_generated_tokens_total")
    before = [server.metric(name) for name in names]
    answer = server.complete(extra_body={"sparsity": 0.5})
    decisions, skipped, tokens = (
        server.metric(name) - was for name, was in zip(names, before, strict=True)
    )
    assert tokens == 24
    assert skipped / decisions == pytest.approx(answer.skipgpt["sparsity"])
    assert 0 < server.metric("skipgpt_sparsity") < 1
    assert server.metric("skipgpt_tokens_per_second") > 0


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"prompt": "x" * (CONTEXT + 1)}, r"prompt of 8,193 tokens .*at most 8,192 tokens in all"),
        ({"max_tokens": CONTEXT}, "8,192 new tokens; .*at most 8,184 new tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ""}, "at least one token"),
        ({"prompt": []}, "at least one token"),
        ({"prompt": [1, 257 + 9]}, "from 0 to 256"),
        ({"prompt": ["a", "b"]}, "2 prompts; this server takes one"),
        ({"prompt": 3}, "prompt: .*expected text, token ids"),
        ({"prompt": [True]}, "prompt: .*expected text, token ids"),
        ({"prompt": None}, "prompt: Field required"),
        ({"temperature": float("1e9")}, "temperature"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "at most 4"),
        ({"stop": ""}, "at most 4"),
        ({"stop": [3]}, "expected text"),
        ({"stream": "perhaps"}, "stream"),
        ({"n": 2}, "n=2 is not offered"),
        ({"extra_body": {"sparsity": 0.9}}, r"at most 0\.(79|80)"),
        ({"extra_body": {"sparsity": -0.1}}, "sparsity"),
        ({"extra_body": {"sparsity": "half"}}, "sparsity"),
        ({"extra_body": {"sparsity": "0.4"}}, "sparsity"),
        ({"extra_body": {"sparsity": 0.2, "budget": "joules"}}, "budget"),
        ({"extra_body": {"sparsity": 0.2, "budget": "time"}}, "modules and FLOPs only"),
        ({"extra_body": {"budget": "flops"}}, "'flops' without a sparsity"),
        ({"extra_body": {"max_tokens": True}}, "max_tokens"),
        ({"extra_body": {"top_k": 5}}, "top_k=5 is not offered"),
        ({"extra_body": {"anything": 1}}, "anything=1 is not offered"),
    ],
)
def test_a_request_that_cannot_be_done_is_refused_with_why(
    server: Server, wanted: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        server.complete(**wanted)


def test_fields_that_are_null_or_ask_for_nothing_else_are_as_if_not_there(server: Server) -> None:
    nothing: dict[str, Any] = {"top_p": None, "stop": None, "stream": None, "seed": None, "n": 1}
    answer = server.complete(**nothing, user="me", extra_body={"sparsity": None, "top_k": -1})
    assert answer.choices[0].text == server.complete().choices[0].text


@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 1e-320])
def test_a_temperature_next_to_nothing_is_greedy(server: Server, temperature: float) -> None:
    answer = server.complete(temperature=temperature)
    assert answer.choices[0].text == server.complete().choices[0].text


def test_a_seed_is_for_its_own_request(server: Server) -> None:
    others = []
    for _ in range(3):
        server.complete(temperature=1, seed=7)
        others.append(server.complete(temperature=1).choices[0].text)
    assert len(set(others)) == 3


def test_a_client_that_leaves_the_line_is_not_served(server: Server) -> None:
    before = server.metric("skipgpt_cancelled_total")
    long = server.complete(max_tokens=CONTEXT - 100, stream=True)
    next(iter(long))
    with pytest.raises(openai.APITimeoutError):
        server.client().with_options(timeout=0.5).completions.create(
            model="tiny", prompt="a", max_tokens=24
        )
    deadline = time.monotonic() + 30
    time.sleep(1.5)  # longer than the server takes to look
    long.close()
    while server.metric("skipgpt_cancelled_total") < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.metric("skipgpt_waiting") == 0


def test_a_wrong_model_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o' here; this is 'ti"):
        server.complete(model="gpt-4o")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"prompt": "a", ', 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
        (b"", 400, "required"),
        (b"[1, 2]", 400, "dict"),
        (b'{"messages": []}', 400, "prompt"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "finite"),
        (b'{"prompt": "\\ud800", "max_tokens": 2}', 400, "surrogate"),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    server: Server, body: bytes, status: int, said: str
) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(_raw(server, body))
    assert refused.value.code == status
    error = json.loads(refused.value.read())["error"]
    assert said.lower() in error["message"].lower()
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("told", [True, False])
def test_a_body_without_end_is_refused(server: Server, told: bool) -> None:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    client = http.client.HTTPConnection(host, int(port))
    client.putrequest("POST", "/v1/completions")
    client.putheader("Authorization", f"Bearer {KEY}")
    client.putheader(*(("Content-Length", "5000000") if told else ("Transfer-Encoding", "chunked")))
    client.endheaders()
    if not told:
        for _ in range(5):
            client.send(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")
    answer = client.getresponse()
    assert answer.status == 413
    assert b"4,194,304 bytes" in answer.read()
    client.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/nowhere", 404), ("/v1/completions", 405), ("/docs", 404), ("/openapi.json", 404)],
)
def test_paths_and_methods_that_nobody_serves(server: Server, path: str, status: int) -> None:
    url = server.url.removesuffix("/v1") + path
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, headers={"Authorization": f"Bearer {KEY}"}))
    assert refused.value.code == status
    assert "error" in json.loads(refused.value.read())
    assert "nowhere" not in server.text("/metrics")


@pytest.mark.parametrize("key", ["", "another key", "ключ"])
def test_without_the_right_key_nothing_is_answered(server: Server, key: str) -> None:
    request = _raw(server, b'{"prompt": "a"}')
    request.remove_header("Authorization")
    if key:
        request.add_header("Authorization", f"Bearer {key}".encode().decode("latin-1"))
    with pytest.raises(HTTPError) as refused:
        urlopen(request)
    assert refused.value.code == 401
    assert "no API key, or a wrong one" in refused.value.read().decode()


def test_the_client_sees_a_wrong_key(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        server.client("another key").models.list()


def test_sigterm_lets_a_running_stream_finish(folder: Path) -> None:
    with serving(folder) as server:
        stream = iter(server.complete(max_tokens=400, stream=True))
        chunks = [next(stream)]
        server.process.terminate()
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "length"
        status, errors = server.ended()
        assert status == 0
        assert "Traceback" not in errors
        with pytest.raises(openai.APIConnectionError):
            server.complete()


def test_what_is_not_over_after_the_grace_is_told_so(folder: Path) -> None:
    with serving(folder, "--grace", 0) as server:
        first = iter(server.complete(max_tokens=CONTEXT - 100, stream=True))
        next(first)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(server.complete)
            while server.metric("skipgpt_waiting") < 1:
                time.sleep(0.05)
            server.process.terminate()
            with pytest.raises(openai.APIError, match="the server is stopping"):
                list(first)
            with pytest.raises(openai.InternalServerError, match="the server is stopping"):
                second.result()
        status, errors = server.ended()
        assert status == 0
        assert "Traceback" not in errors


def test_a_second_ctrl_c_ends_at_once_and_in_order(folder: Path) -> None:
    with serving(folder) as server:
        stream = iter(server.complete(max_tokens=CONTEXT - 100, stream=True))
        next(stream)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGINT)
        status, errors = server.ended()
        assert status == 0
        assert "terminate called" not in errors
        assert "Traceback" not in errors


def test_a_taken_port_is_known_before_the_model_is_loaded(server: Server, folder: Path) -> None:
    port = server.url.split(":")[-1].removesuffix("/v1")
    done = skipgpt("serve", folder, "--port", port)
    assert done.status == 2
    assert f"listening on 127.0.0.1:{port}: got Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_address_of_another_machine_is_refused(folder: Path) -> None:
    done = skipgpt("serve", folder, "--host", "203.0.113.7", "--port", "0")
    assert done.status == 2
    assert "listening on 203.0.113.7:0" in done.stderr


def test_a_port_is_free_again_at_once(folder: Path) -> None:
    with serving(folder) as server:
        port = int(server.url.split(":")[-1].removesuffix("/v1"))
        server.stop()
    with socket.create_server(("127.0.0.1", port)):
        pass


def _raw(server: Server, body: bytes) -> Request:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    return Request(f"{server.url}/completions", body, headers)


ORIGIN = "https://chat.example"


@pytest.fixture(scope="module")
def client(loaded: Any) -> Iterator[Any]:
    """The application with an allowed origin, in this process."""
    from fastapi.testclient import TestClient

    metrics = Metrics()
    engine = Engine(*loaded, metrics)
    app = build_app(engine, "tiny", metrics, context=CONTEXT, api_key=KEY, allowed_origins=[ORIGIN])
    with TestClient(app) as client:
        yield client
    engine.close()


def _preflight(client: Any, origin: str) -> Any:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.options("/v1/chat/completions", headers=asked)


def test_a_browser_may_ask_from_an_allowed_origin_only(client: Any) -> None:
    answer = _preflight(client, ORIGIN)  # which bears no key
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-origin" not in _preflight(client, "https://other").headers
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {KEY}"}
    body = {"prompt": "The cats", "max_tokens": 2, "temperature": 0}
    answer = client.post("/v1/completions", headers=headers, json=body)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refused = client.post("/v1/completions", headers={"Origin": ORIGIN}, json=body)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_no_browser_may_ask_unless_an_origin_is_allowed(server: Server) -> None:
    request = Request(f"{server.url}/chat/completions", method="OPTIONS")
    request.add_header("Origin", ORIGIN)
    request.add_header("Access-Control-Request-Method", "POST")
    with pytest.raises(HTTPError) as refused:
        urlopen(request)
    assert "access-control-allow-origin" not in refused.value.headers
    refused.value.close()


def test_a_chat_as_clients_send_it_back(client: Any) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns: list[Any] = [
        {"role": "user", "content": "Cats?"},
        {"role": "assistant", "content": "Me"},
    ]

    def ask(messages: list[Any], **more: Any) -> Any:
        body = {"messages": messages, "max_tokens": 4, "temperature": 0, **more}
        return client.post("/v1/chat/completions", headers=headers, json=body)

    answer = ask(turns, logprobs=True, top_logprobs=20)
    assert answer.json()["usage"]["prompt_tokens"] == len("user: Cats?\nassistant: Me")
    (choice,) = answer.json()["choices"]
    places = choice["logprobs"]["content"]
    joined = b"".join(bytes(place["bytes"]) for place in places)
    assert joined.decode() == choice["message"]["content"]
    assert [len(place["top_logprobs"]) for place in places] == [20] * len(places)
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    refused = ask([turns[0], calls, turns[0]])
    assert refused.status_code == 400  # its template has no place for calls
    assert "messages.1.tool_calls" in refused.json()["error"]["message"]


def test_a_completion_has_as_many_alternatives_as_were_asked_for(client: Any) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"prompt": "The cats", "max_tokens": 8, "temperature": 0, "logprobs": 20}
    answer = client.post("/v1/completions", headers=headers, json=body).json()
    top = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert [len(each) for each in top] == [20] * answer["usage"]["completion_tokens"]


def test_a_client_that_sends_a_long_body_reads_why_it_is_refused(server: Server) -> None:
    request = urllib.request.Request(
        f"{server.url}/completions", b" " * 6_000_000, {"Authorization": f"Bearer {KEY}"}
    )
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(request, timeout=60)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_load_balancers_may_ask_without_a_body(server: Server, path: str) -> None:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    client = http.client.HTTPConnection(host, int(port))
    client.request("HEAD", path, headers={"Authorization": f"Bearer {KEY}"})
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    client.close()
