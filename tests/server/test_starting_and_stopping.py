"""How a server starts and stops."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from command import skipgpt
from running_server import CONTEXT, Server, serving, serving_afresh


def test_sigterm_lets_a_running_stream_finish(folder: Path) -> None:
    with serving_afresh(folder) as server:
        stream = iter(server.complete(max_tokens=400, stream=True))
        chunks = [next(stream)]
        server.process.send_signal(signal.SIGTERM)
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
            server.process.send_signal(signal.SIGTERM)
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


def test_a_port_is_free_again_at_once(folder: Path) -> None:
    with serving(folder) as server:
        port = int(server.url.split(":")[-1].removesuffix("/v1"))
        server.stop()
    with socket.create_server(("127.0.0.1", port)):
        pass
