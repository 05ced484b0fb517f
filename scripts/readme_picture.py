"""Draw README's picture: a real text, each token shaded by what it ran, above loss against FLOPs.

    python scripts/readme_picture.py out/fit --text text.txt \
        --comparison out/compare/comparison.json --out docs/images/routing.svg

One file for light and dark pages: its colours follow the reader's.
"""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import skipgpt
from skipgpt.analysis.trace import trace_text

WIDTH, MARGIN, ADVANCE, LINE = 880, 24, 8.4, 26
"""Pixels: of the picture, of its border, of a letter, of a line of text."""
PLOT = 240
COLOURS = ("#d9480f", "#1c7ed6", "#2b8a3e", "#9c36b5", "#5c940d", "#0b7285")
STYLE = """
text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1f2328 }
.token { font: 14px ui-monospace, Menlo, Consolas, monospace }
.dim { fill: #59636e } .axis { stroke: #59636e; fill: none } .ran { fill: #d9480f }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .dim { fill: #9198a1 } .axis { stroke: #9198a1 } .ran { fill: #ff922b }
}
"""


class Curve(NamedTuple):
    """Points of one method: share of FLOPs saved, and excess loss in nats per token."""

    method: str
    points: list[tuple[float, float]]


def shaded_text(pieces: Sequence[str], compute: Sequence[float], top: float) -> tuple[str, float]:
    """Tokens on lines, each behind it a box whose opacity is the share of its modules that ran.

    Returns:
        The elements, and where the last line ends.
    """
    low, high = torch.tensor(compute).quantile(torch.tensor([0.03, 0.97])).tolist()
    x, y, out = float(MARGIN), top, []
    for piece, share in zip(pieces, compute, strict=True):
        shown = piece.replace("\n", "⏎ ")
        wide = ADVANCE * len(shown)
        if x + wide > WIDTH - MARGIN:
            x, y = float(MARGIN), y + LINE
            shown = shown.lstrip()
            wide = ADVANCE * len(shown)
        opacity = 0.04 + 0.8 * min(max((share - low) / max(high - low, 1e-9), 0), 1)
        out.append(
            f'<rect class="ran" x="{x:.1f}" y="{y - 16:.1f}" width="{wide:.1f}" height="22" '
            f'opacity="{opacity:.2f}"/><text class="token" xml:space="preserve" x="{x:.1f}" '
            f'y="{y:.1f}" textLength="{wide:.1f}">{html.escape(shown)}</text>'
        )
        x += wide
        if "\n" in piece:
            x, y = float(MARGIN), y + LINE
    return "\n".join(out), y + LINE


def plot(curves: Sequence[Curve], top: float) -> str:
    """Loss against FLOPs, a line per method, each named at its end."""
    left, right = MARGIN + 40, WIDTH - 260
    most_x = max(x for curve in curves for x, _ in curve.points) * 1.05
    most_y = min(max(y for curve in curves for _, y in curve.points), 2.0) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        inside = min(max(y, 0.0), most_y)
        return left + (right - left) * x / most_x, top + PLOT * (1 - inside / most_y)

    out = [f'<path class="axis" d="M{left},{top} V{top + PLOT} H{right}"/>']
    for tick in range(0, int(100 * most_x) + 1, 5):
        x, y = place(tick / 100, 0)
        out.append(
            f'<text class="dim" x="{x:.0f}" y="{y + 18}" text-anchor="middle">{tick}%</text>'
        )
    for tenth in range(0, int(most_y * 10) + 1, max(1, round(most_y * 2))):
        x, y = place(0, tenth / 10)
        out.append(
            f'<text class="dim" x="{x - 8}" y="{y + 4:.0f}" text-anchor="end">{tenth / 10}</text>'
        )
    out.append(
        f'<text class="dim" x="{(left + right) / 2:.0f}" y="{top + PLOT + 38}" '
        'text-anchor="middle">FLOPs saved per token</text>'
        f'<text class="dim" x="{left}" y="{top - 12}">loss above dense, nats per token</text>'
    )
    for number, (curve, colour) in enumerate(zip(curves, COLOURS, strict=False)):
        points = [place(*point) for point in [(0.0, 0.0), *sorted(curve.points)]]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        heavy = 3 if number == 0 else 1.5
        out.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{heavy}"/>'
        )
        out += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points[1:]
        ]
        y = top + 10 + 24 * number
        out.append(
            f'<circle cx="{right + 28}" cy="{y - 4}" r="5" fill="{colour}"/>'
            f'<text x="{right + 40}" y="{y}">{html.escape(curve.method)}</text>'
        )
    return "\n".join(out)


def curves_of(comparison: Path, methods: Sequence[str]) -> list[Curve]:
    """Means over seeds of a `skipgpt compare`, the first method first."""
    rows = json.loads(comparison.read_text())["rows"]
    found = []
    for method in methods or dict.fromkeys(row["method"] for row in rows):
        budgets: dict[float, list[tuple[float, float]]] = {}
        for row in rows:
            if row["method"].split(" (")[0] == method and method != "dense":
                point = row["sparsity"]["flops"], row["excess_nll"]
                budgets.setdefault(row["target"], []).append(point)
        points = [tuple(torch.tensor(each).mean(0).tolist()) for each in budgets.values()]
        if points:
            found.append(Curve(method, points))
    return found


def main() -> None:
    """Read the text with the checkpoint and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=110, help="tokens of the text that are shown")
    parser.add_argument("--sparsity", type=float)
    parser.add_argument(
        "--comparison", type=Path, required=True, help="comparison.json of `skipgpt compare`"
    )
    parser.add_argument("--methods", nargs="*", default=[], help="curves; all where none is named")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model, tokenizer = skipgpt.load(given.checkpoint, sparsity=given.sparsity)
    ids = tokenizer(given.text.read_text(), return_tensors="pt")["input_ids"][:, : given.tokens]
    trace = trace_text(model, tokenizer, ids)
    shares = trace.compute.tolist()
    said = (
        f"The darker a token, the more of its {2 * trace.keep.shape[0]} modules ran: "
        f"{min(shares):.0%} to {max(shares):.0%}."
    )
    text, bottom = shaded_text(trace.text.pieces, shares, 62)
    height = bottom + 40 + PLOT + 60
    curves = plot(curves_of(given.comparison, given.methods), bottom + 30)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">\n'
        f"<title>{html.escape(said)}</title><style>{STYLE}</style>\n"
        f'<text class="dim" x="{MARGIN}" y="28">{html.escape(said)}</text>\n'
        f"{text}\n{curves}\n</svg>\n"
    )


if __name__ == "__main__":
    main()
