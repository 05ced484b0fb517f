"""A map of one text: which token ran which module, as terminal text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.analysis.trace import TextTrace, trace_text
from skipgpt.data.encoding import encode_prompt
from skipgpt.errors import ConfigError
from skipgpt.evaluation.windows import rows_of
from skipgpt.model.loading.limits import check_ids, context_of
from skipgpt.report.terminal import Scale, in_a_line

_CELLS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): "·"}
_WIDEST = 24


@dataclass(frozen=True)
class RoutingMap:
    """What ran for each token of one text.

    Attributes:
        tokens: tokens as text.
        attn: whether attention ran, by token and layer.
        mlp: likewise for the MLP.
    """

    tokens: list[str]
    attn: list[list[bool]]
    mlp: list[list[bool]]

    @classmethod
    def of(cls, trace: TextTrace) -> RoutingMap:
        """Make the map of a trace."""
        attn, mlp = trace.keep.permute(1, 2, 0).tolist()
        return cls(list(trace.text.pieces), attn, mlp)

    @property
    def sparsity(self) -> float:
        """Share of decisions that skip."""
        cells = [cell for rows in (self.attn, self.mlp) for row in rows for cell in row]
        return 1 - sum(cells) / len(cells)

    def to_terminal(self, colour: bool = True) -> str:
        """Draw a line per token, a cell per layer: upper half attention, lower half MLP.

        Tokens have the colours of `skipgpt generate --show-routing`.
        """
        shown = [in_a_line(token)[:_WIDEST] for token in self.tokens]
        width, modules = max(map(len, shown)), 2 * len(self.attn[0])
        scale = Scale.around(self.sparsity)
        head = f"{'token':>{width}}  layer 1 to {len(self.attn[0])}"
        lines = [f"{head}   █ both  ▀ attention only  ▄ MLP only  · neither"]
        for token, attn, mlp in zip(shown, self.attn, self.mlp, strict=True):
            cells = "".join(_CELLS[pair] for pair in zip(attn, mlp, strict=True))
            ran = sum(attn) + sum(mlp)
            name = scale.paint(token, ran / modules) if colour else token
            lines.append(f"{' ' * (width - len(token))}{name}  {cells}  {ran}/{modules}")
        return "\n".join(lines)


def routing_map(model: Any, tokenizer: Any, text: str) -> RoutingMap:
    """Run a text through a model with routers and map what ran.

    It begins as a prompt does, with BOS if the tokenizer puts it there. A text longer than the
    model's context is read in independent rows of that length.

    Raises:
        ConfigError: the text is empty, or the model has no routers.
        DataError: the text is a single token, which predicts none.

    Example:
        print(routing_map(model, tokenizer, "print('hello')").to_terminal())
    """
    ids = torch.tensor(encode_prompt(tokenizer, text), dtype=torch.int64)
    if not text or len(ids) == 0:
        raise ConfigError("mapping a text", got="no token", expected="a text that is not empty")
    check_ids("mapping a text", model, tokenizer, ids)
    rows = rows_of(ids, context_of(model) or len(ids))
    return RoutingMap.of(trace_text(model, tokenizer, rows))
