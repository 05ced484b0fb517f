"""Response bodies in OpenAI's format, whole or in chunks."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from skipgpt.serving.generation import Completion, TextChunk
from skipgpt.serving.tokens import Likely, TokenLogprob


@dataclass(frozen=True)
class Reply:
    """What all parts of one reply have in common.

    Attributes:
        model: name of the model.
        chat: whether it is one of `/v1/chat/completions`.
        prompt_tokens: for the usage.
        logprobs: whether log-probabilities were requested.
        name: id of the reply.
        created: Unix time in seconds.
    """

    model: str
    chat: bool
    prompt_tokens: int
    logprobs: bool = False
    name: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[TextChunk], done: Completion) -> dict[str, Any]:
        """Return the whole reply."""
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._body(False, [self._choice(said, tokens, done.reason)], self._usage(done))

    def chunk(self, piece: TextChunk) -> dict[str, Any]:
        """Return a chunk of the reply."""
        said = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        return self._body(True, [self._choice(said, piece.tokens)])

    def opening(self) -> dict[str, Any]:
        """Return the first chunk of a chat, with the role."""
        return self._body(True, [self._choice({"delta": {"role": "assistant", "content": ""}})])

    def closing(self, done: Completion) -> dict[str, Any]:
        """Return the last chunk of the text, with the finish reason."""
        said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        body = self._body(True, [self._choice(said, (), done.reason)])
        return body | {"skipgpt": self._usage(done)["skipgpt"]}

    def usage_chunk(self, done: Completion) -> dict[str, Any]:
        """Return the chunk with the usage that `stream_options` request, after the text."""
        return self._body(True, [], self._usage(done))

    def _usage(self, done: Completion) -> dict[str, Any]:
        """Return token counts and the measured sparsity."""
        return {
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": done.new_tokens,
                "total_tokens": self.prompt_tokens + done.new_tokens,
            },
            "skipgpt": {"sparsity": done.skipped / max(1, done.decisions)},
        }

    def _body(
        self, chunk: bool, choices: list[dict[str, Any]], more: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        head = {"id": self.name, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **(more or {})}

    def _choice(
        self, said: dict[str, Any], tokens: Sequence[TokenLogprob] = (), reason: str | None = None
    ) -> dict[str, Any]:
        logs = None
        if self.logprobs and tokens:
            logs = _of_chat(tokens) if self.chat else _of_completion(tokens)
        return {"index": 0, **said, "logprobs": logs, "finish_reason": reason}


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> Any:
    """Return the body of an error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _of_completion(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_by_text(token.top) for token in tokens],
        "text_offset": [token.start for token in tokens],
    }


def _by_text(top: Iterable[Likely]) -> dict[str, float]:
    """Key log-probabilities by token text; of equal texts, all but the first by id."""
    found: dict[str, float] = {}
    for each in top:
        text = each.text if each.text not in found else f"token_id:{each.id}"
        found[text] = _finite(each.logprob)
    return found


def _of_chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            _place(token) | {"top_logprobs": [_place(each) for each in token.top]}
            for token in tokens
        ]
    }


def _place(token: Likely) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": _finite(token.logprob),
        "bytes": None if token.bytes is None else list(token.bytes),
    }


def _finite(logprob: float) -> float:
    """Replace an infinity, which JSON lacks."""
    return logprob if math.isfinite(logprob) else -9999.0
