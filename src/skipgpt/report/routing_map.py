"""A map of one text: which token ran which module, as terminal text and as an HTML page."""

from __future__ import annotations

import html
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

    def to_html(self, title: str) -> str:
        """A self-contained page: the text shaded by compute, and the map under it."""
        layers = len(self.attn[0])
        shares = [
            (sum(a) + sum(m)) / (2 * layers) for a, m in zip(self.attn, self.mlp, strict=True)
        ]
        low, high = min(shares), max(shares)
        text = "".join(
            f'<span style="background:{_shade((share - low) / (high - low or 1))}" '
            f'title="{round(share * 2 * layers)} of {2 * layers} modules">'
            f"{html.escape(token)}</span>"
            for token, share in zip(self.tokens, shares, strict=True)
        )
        shades = f"The stronger the shade, the more ran: from {low:.0%} to {high:.0%} of a token."
        if low == high:
            shades = f"Every token ran {low:.0%} of its modules."
        heads = "".join(f'<th colspan="2">{number}</th>' for number in range(1, layers + 1))
        rows = []
        for token, attn, mlp in zip(self.tokens, self.attn, self.mlp, strict=True):
            cells = "".join(
                f'<td class="{"a" if a else "n"}"></td><td class="{"m" if m else "n"} e"></td>'
                for a, m in zip(attn, mlp, strict=True)
            )
            rows.append(f"<tr><th>{html.escape(_visible(token))}</th>{cells}</tr>")
        return _PAGE.format(
            title=html.escape(title),
            text=text,
            heads=heads,
            rows="\n".join(rows),
            share=f"{self.sparsity:.1%}",
            tokens=len(self.tokens),
            shades=shades,
        )


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


def _shade(share: float) -> str:
    """Light where little ran, full where most ran."""
    return f"rgba(32, 140, 100, {0.06 + 0.62 * share:.2f})"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ --ink: #1c2321; --paper: #fbfbf9; --none: #e7e9e5; --attn: #2f6fb2; --mlp: #208c64; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e9e6; --paper: #161a19; --none: #2a302e; --attn: #6aa8e6; --mlp: #52c496; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: var(--ink); background: var(--paper); }}
pre {{ font: 14px/1.6 ui-monospace, monospace; padding: 1rem; border: 1px solid var(--none);
  border-radius: 6px; overflow-x: auto; }}
.map {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font: 12px/1.2 ui-monospace, monospace; }}
th {{ font-weight: normal; padding: 0 .5rem; text-align: right; white-space: pre; }}
thead th {{ text-align: center; padding: 0 0 .3rem; }}
td {{ width: 15px; height: 15px; border: 1px solid var(--paper); }}
td.e {{ border-right-width: 5px; }}
td.a {{ background: var(--attn); }} td.m {{ background: var(--mlp); }}
td.n {{ background: var(--none); }}
.key i {{ display: inline-block; width: 12px; height: 12px; margin: 0 .3rem 0 1rem; }}
</style></head><body>
<h1>{title}</h1>
<p>{tokens} tokens; {share} of all (token, module) pairs were skipped. {shades}</p>
<pre>{text}</pre>
<p class="key"><i style="background:var(--attn)"></i>attention ran
<i style="background:var(--mlp)"></i>MLP ran <i style="background:var(--none)"></i>skipped; columns
are layers, left cell attention, right cell MLP.</p>
<div class="map"><table><thead><tr><th></th>{heads}</tr></thead><tbody>
{rows}
</tbody></table></div>
</body></html>
"""
