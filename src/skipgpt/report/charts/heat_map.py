"""Keep rates by layer and step as inline SVG; a stronger cell means more tokens ran it."""

from __future__ import annotations

from collections.abc import Sequence

from skipgpt.report.charts.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from skipgpt.report.markup import escaped

TICKS = 4


def heat_map(
    title: str, steps: Sequence[int], columns: Sequence[Sequence[float]], kind: str
) -> str:
    """Draw a map, layers from top to bottom and steps from left to right.

    Each column holds the shares of its step, one per layer; the CSS class `kind` sets the colour.
    Empty where there is nothing to draw.
    """
    layers = max((len(column) for column in columns), default=0)
    if not layers:
        return ""
    width = (WIDTH - LEFT - RIGHT) / len(columns)
    height = (HEIGHT - TOP - BOTTOM) / layers
    cells = [
        f'<path d="M{LEFT + n * width:.1f} {TOP + layer * height:.1f}h{width + 0.2:.1f}'
        f'v{height - min(1.0, height / 6):.1f}h-{width + 0.2:.1f}z" opacity="{share:.2f}"/>'
        for n, column in enumerate(columns)
        for layer, share in enumerate(column)
        if share > 0
    ]
    frame = f'<path class="empty" d="M{LEFT} {TOP}H{WIDTH - RIGHT}V{HEIGHT - BOTTOM}H{LEFT}z"/>'
    return (
        f'<figure class="chart"><figcaption>{escaped(title)}'
        f'<span class="legend">{_scale(kind)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escaped(_said(title, columns))}">'
        f'{frame}<g class="cells {kind}">{"".join(cells)}</g>{_ticks(steps, layers, width, height)}'
        "</svg></figure>"
    )


def _ticks(steps: Sequence[int], layers: int, width: float, height: float) -> str:
    shown = sorted({round(n * (len(steps) - 1) / (TICKS - 1)) for n in range(TICKS)})
    across = [
        f'<text x="{LEFT + (n + 0.5) * width:.1f}" y="{HEIGHT - BOTTOM + 16}" '
        f'text-anchor="middle">{steps[n]}</text>'
        for n in shown
    ]
    rows = sorted({1, layers, *range(1, layers + 1, max(1, -(-layers // 8)))})
    if len(rows) > 2 and rows[-1] - rows[-2] < layers / 12:
        del rows[-2]
    down = [
        f'<text x="{LEFT - 6}" y="{TOP + (row - 0.5) * height + 4:.1f}" '
        f'text-anchor="end">{row}</text>'
        for row in rows
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        "".join(across + down)
        + f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">step</text>'
        + f'<text x="{LEFT - 6}" y="{TOP - 8}" text-anchor="end">layer</text>'
    )


def _scale(kind: str) -> str:
    samples = "".join(f'<path d="M{n * 10} 1h10v8h-10z" opacity="{n / 4:.2f}"/>' for n in range(5))
    return (
        '<span>0% <svg viewBox="0 0 50 10" class="wide-sample" aria-hidden="true">'
        f'<path class="empty" d="M0 1h50v8h-50z"/><g class="cells {kind}">{samples}</g></svg> 100%'
        "</span>"
    )


def _said(title: str, columns: Sequence[Sequence[float]]) -> str:
    """Text for screen readers: the newest column."""
    newest = ", ".join(f"layer {n} {share:.0%}" for n, share in enumerate(columns[-1], 1))
    return f"{title}; newest: {newest}"
