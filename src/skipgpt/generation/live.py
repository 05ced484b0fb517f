"""Tells what ran for each token while a text is generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.model.trace import Trace
from skipgpt.routing.decision import MODULES


@dataclass(frozen=True)
class TokenRun:
    """One token and what ran for it.

    Attributes:
        text: the text it adds; empty if a later token completes the character.
        prompt: whether it belongs to the prompt.
        attn: whether attention ran, by layer; empty for a token that the model did not read, such
            as the last one generated.
        mlp: the same for the MLP.
    """

    text: str
    prompt: bool
    attn: tuple[bool, ...] = ()
    mlp: tuple[bool, ...] = ()

    @property
    def compute(self) -> float | None:
        """Share of modules that ran; None for a token that was not read."""
        ran = (*self.attn, *self.mlp)
        return sum(ran) / len(ran) if ran else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "compute": self.compute}


OnToken = Callable[[TokenRun], None]


class LiveRouting:
    """Tells the tokens of one text, the prompt's first.

    A token is reported one step late: what runs for it is decided when the model reads it.

    Args:
        trace: the trace that records the forwards.
        prompt: the text of each prompt token.
        tell: called with every token, in order.
    """

    def __init__(self, trace: Trace, prompt: Sequence[str], tell: OnToken) -> None:
        self._trace, self._tell, self._steps = trace, tell, 0
        self._waiting = [TokenRun(text, prompt=True) for text in prompt]

    def add(self, text: str) -> None:
        """Take the text of the next generated token."""
        self._tell_read()
        self._waiting.append(TokenRun(text, prompt=False))

    def end(self, rest: str) -> None:
        """Report the remaining tokens, the last with the rest of the text: generation is over."""
        self._tell_read()
        if rest:
            last = self._waiting.pop()
            self._waiting.append(dataclasses.replace(last, text=last.text + rest))
        for token in self._waiting:
            self._tell(token)

    def _tell_read(self) -> None:
        for step in self._trace.steps[self._steps :]:
            attn, mlp = (
                torch.stack([keep[0] for keep in step.keeps(module)], dim=1).tolist()
                for module in MODULES
            )
            for ran in zip(attn, mlp, strict=True):
                token = self._waiting.pop(0)
                self._tell(dataclasses.replace(token, attn=tuple(ran[0]), mlp=tuple(ran[1])))
        self._steps = len(self._trace.steps)
