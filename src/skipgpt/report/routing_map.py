"""A map of one text: which token ran which module, as terminal text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.errors import ConfigError
from skipgpt.model.trace import record_routing

_CELLS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): "·"}
_GREEN, _DIM, _RESET = "\033[32m", "\033[2m", "\033[0m"


@dataclass(frozen=True)
class RoutingMap:
    """What ran for each token of one text.

    Attributes:
        tokens: as text.
        attn: by token, by layer: whether attention ran.
        mlp: likewise the MLP.
    """

    tokens: list[str]
    attn: list[list[bool]]
    mlp: list[list[bool]]

    @property
    def sparsity(self) -> float:
        """Share of decisions that skip."""
        cells = [cell for rows in (self.attn, self.mlp) for row in rows for cell in row]
        return 1 - sum(cells) / len(cells)

    def to_terminal(self, colour: bool = True) -> str:
        """One line a token, one cell a layer: upper half attention, lower half MLP."""
        width = min(24, max(len(_visible(token)) for token in self.tokens))
        green, dim, reset = (_GREEN, _DIM, _RESET) if colour else ("", "", "")
        head = f"{'token':>{width}}  layer 1 to {len(self.attn[0])}"
        lines = [f"{dim}{head}   █ both  ▀ attention only  ▄ MLP only  · neither{reset}"]
        for token, attn, mlp in zip(self.tokens, self.attn, self.mlp, strict=True):
            cells = "".join(_CELLS[pair] for pair in zip(attn, mlp, strict=True))
            run = sum(attn) + sum(mlp)
            lines.append(
                f"{_visible(token)[:width]:>{width}}  {green}{cells}{reset}"
                f"  {dim}{run}/{2 * len(attn)}{reset}"
            )
        return "\n".join(lines)


@torch.no_grad()
def routing_map(model: Any, tokenizer: Any, text: str) -> RoutingMap:
    """Run a text through a model with routers and map what ran.

    Raises:
        ConfigError: the text is empty, or the model has no routers.

    Example:
        print(routing_map(model, tokenizer, "print('hello')").to_terminal())
    """
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if ids.shape[1] == 0:
        raise ConfigError("mapping a text", got="no token", expected="a text that is not empty")
    with record_routing(model) as trace:
        model(input_ids=ids.to(model.device), use_cache=False)
    step = trace.steps[0]
    attn, mlp = (
        torch.stack([keep[0] for keep in step.keeps(module)], dim=1).tolist()
        for module in ("attn", "mlp")
    )
    return RoutingMap([tokenizer.decode([token]) for token in ids[0].tolist()], attn, mlp)


def _visible(token: str) -> str:
    shown = token.replace("\n", "⏎").replace(" ", "·").replace("\t", "→")
    return "".join(letter if letter.isprintable() else "?" for letter in shown)
