"""What the server refuses, and whom."""

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from command import skipgpt
from running_server import CONTEXT, KEY, ORIGIN, Server
from skipgpt.serving.app import build_app
from skipgpt.serving.engine import Engine
from skipgpt.serving.metrics import Metrics


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
        ({"extra_body": {"sparsity": 0.2, "budget": "time"}}, "a machine that was not profiled"),
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


def test_a_failure_is_counted_under_its_route_not_under_what_the_client_wrote(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("skipgpt.serving.app._refuse_other", fail)
    engine = Engine(*loaded, metrics := Metrics())
    app = build_app(engine, "tiny", metrics, context=CONTEXT)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/v1/models/written-by-a-client").status_code == 500
    engine.close()
    counted = metrics.text().decode()
    assert 'skipgpt_answers_total{path="/v1/models/{asked:path}",status="500"} 1.0' in counted
    assert "written-by-a-client" not in counted


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


def test_an_address_of_another_machine_is_refused(folder: Path) -> None:
    done = skipgpt("serve", folder, "--host", "203.0.113.7", "--port", "0")
    assert done.status == 2
    assert "listening on 203.0.113.7:0" in done.stderr


def _raw(server: Server, body: bytes) -> Request:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    return Request(f"{server.url}/completions", body, headers)


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
