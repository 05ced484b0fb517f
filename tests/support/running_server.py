"""A running server: `skipgpt serve` in a process of its own, on a checkpoint of a second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai

from command import Running, started
from runs import make_checkpoint
from tiny import byte_tokenizer, tiny_base

KEY = "a key"
ENVIRONMENT = {"SKIPGPT_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
ORIGIN = "https://chat.example"
CONTEXT = 8192
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def checkpoint_with_chat(folder: Path, **changes: Any) -> Path:
    """A calibrated checkpoint whose tokenizer has a chat template, and a context of 8,192."""
    base = folder / "base"
    size = {"initializer_range": 0.2, "max_position_embeddings": CONTEXT, **changes}
    tiny_base(**size).save_pretrained(base)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    make_checkpoint(base, folder / "tiny")
    return folder / "tiny"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: that clients are given.
        process: it runs in.
        clients: closed at the end.
    """

    url: str
    process: subprocess.Popen[str] | Running
    clients: ExitStack

    def client(self, key: str = KEY) -> openai.OpenAI:
        """The official client; it does not try again."""
        client = openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)
        return self.clients.enter_context(client)

    def complete(self, prompt: Any = "The cats", **wanted: Any) -> Any:
        """The answer to a completion: greedy, 24 tokens, unless something else is wanted."""
        given = {"model": "tiny", "max_tokens": 24, "temperature": 0, **wanted}
        return self.client().completions.create(prompt=prompt, **given)

    def text(self, path: str) -> str:
        """What a path beside the API shows."""
        with urlopen(self.url.removesuffix("/v1") + path) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """A number of `/metrics`."""
        lines = self.text("/metrics").splitlines()
        return next(
            float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name
        )

    def stop(self) -> tuple[int, str]:
        """SIGTERM; the exit status and what was on standard error."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """The exit status and what was on standard error, once it is over."""
        if isinstance(self.process, Running):
            ended = self.process.end(120)
            return ended.status, ended.stderr
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[Server]:
    """Serve a checkpoint on a free port, with a key, in a process that need not import anything."""
    command = ["serve", folder, "--port", 0, "--json", *options]
    with started(*command, before=_with_the_key) as process:
        while "\n" not in process.printed:
            assert process.alive, process.end().stderr
            time.sleep(0.02)
        with ExitStack() as clients:
            yield Server(json.loads(process.printed)["url"], process, clients)


def _with_the_key() -> None:
    os.environ.update(ENVIRONMENT)


@contextmanager
def serving_afresh(folder: Path, *options: object, **environment: str) -> Iterator[Server]:
    """The same as `python -m skipgpt serve`."""
    environment = os.environ | ENVIRONMENT | environment
    command = [sys.executable, "-m", "skipgpt", "serve", str(folder), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            with ExitStack() as clients:
                yield Server(json.loads(line)["url"], process, clients)
        finally:
            process.kill()


def streamed(chunks: Any) -> str:
    """The text of a stream of completions."""
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
