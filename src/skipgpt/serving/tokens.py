"""Tokens of a reply with log-probabilities; their texts and bytes join to the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipgpt.data.detokenize import bytes_of
from skipgpt.model.loading.generation_settings import Ends


@dataclass(frozen=True)
class Likely:
    r"""A candidate token at a position.

    Attributes:
        id: its id.
        text: its text; `bytes:\xc3` where it is part of a character.
        bytes: its bytes; None where they are not known.
        logprob: natural logarithm of its probability, before temperature.
    """

    id: int
    text: str
    bytes: bytes | None
    logprob: float


@dataclass(frozen=True)
class TokenLogprob(Likely):
    """The generated token; a character of several tokens is the text of the last of them.

    Attributes:
        start: characters of the generated text before it.
        top: the most likely tokens at this position.
    """

    start: int
    top: tuple[Likely, ...]


class Tokens:
    """The tokens of a reply, in order.

    Args:
        tokenizer: that made the ids.
        ends: whose ids have no text.
    """

    def __init__(self, tokenizer: Any, ends: Ends) -> None:
        self._tokenizer, self._hidden = tokenizer, {*tokenizer.all_special_ids, *ends.ids}
        self._waiting: list[TokenLogprob] = []
        self._letter = 0  # how many at the end are part of one character

    def add(
        self, token: int, piece: str, start: int, logprob: float, top: Sequence[tuple[int, float]]
    ) -> None:
        """Add a token that added `piece` to the text, after `start` characters of it.

        The piece is empty where a character is incomplete. `top` has ids and log-probabilities of
        the most likely tokens at this position.
        """
        text = self._tokenizer.decode([token]) if token in self._hidden else piece
        data = b"" if token in self._hidden else bytes_of(self._tokenizer, token)
        own = Likely(token, text, data, logprob)
        likely = tuple(own if n == token else self._likely(n, value) for n, value in top)
        self._waiting.append(TokenLogprob(token, text, data, logprob, start, likely))
        self._letter += 1
        if token in self._hidden:
            self._letter = 0
        elif piece:
            self.complete(piece)

    def complete(self, piece: str) -> None:
        """Assign the text and bytes of a piece to the tokens that it is made of."""
        if not self._letter:
            return
        group = self._waiting[-self._letter :]
        parts = [token.bytes or b"" for token in group]
        if b"".join(parts) != piece.encode():
            parts = [b""] * (len(group) - 1) + [piece.encode()]
        texts = [""] * (len(group) - 1) + [piece]
        self._waiting[-self._letter :] = [
            dataclasses.replace(token, text=text, bytes=part)
            for token, text, part in zip(group, texts, parts, strict=True)
        ]
        self._letter = 0

    def up_to(self, shown: float) -> tuple[TokenLogprob, ...]:
        """Return tokens that begin before `shown` characters of the text, each once."""
        ready = tuple(token for token in self._waiting if token.start < shown)
        self._waiting = self._waiting[len(ready) :]
        self._letter = min(self._letter, len(self._waiting))
        return ready

    def _likely(self, token: int, logprob: float) -> Likely:
        text = str(self._tokenizer.decode([token]))
        if token in self._hidden:
            return Likely(token, text, b"", logprob)
        data = bytes_of(self._tokenizer, token)
        if "\N{REPLACEMENT CHARACTER}" in text and data is not None:
            text = "bytes:" + "".join(f"\\x{each:02x}" for each in data)
        return Likely(token, text, data, logprob)
