"""Line charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skipgpt.report.markup import escaped

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 28, 42
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: name in the legend.
        kind: CSS class, which sets the colour: `attn`, `mlp`, `one`, `two`; and the dashes of the
            first line of that kind.
        points: x and y; the line is interrupted where y is not finite.
        dots: mark every point, numbered so that a script can find it.
        number: how many lines of the same kind precede it; others than the first begin their
            dashes with as many dots, to be told apart also in a legend.
    """

    name: str
    kind: str
    points: Sequence[Point]
    dots: bool = False
    number: int = 0

    @property
    def path(self) -> str:
        """The attributes of its path."""
        dashes = f"{'2 3 ' * self.number}{8 if self.kind == 'mlp' else 16} 3"
        own = f' style="stroke-dasharray: {dashes}"' if self.number else ""
        return f'class="line {self.kind}"{own}'


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        name: with its unit.
        said: formats a tick; with as many digits as the ticks need where None.
        low: lower end; from the data where None.
        high: upper end; likewise.
    """

    name: str
    said: Callable[[float], str] | None = None
    low: float | None = None
    high: float | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    level: tuple[str, float] | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw a chart with title, axes, legend and a description for screen readers.

    `level` is the name and the y of a horizontal reference line; `marks` are names and x of
    vertical lines.
    """
    points = [p for line in lines for p in line.points if math.isfinite(p[1])]
    if not points:
        return ""
    across = _scale([p[0] for p in points] + [at for _, at in marks], x)
    up = _scale([p[1] for p in points] + ([level[1]] if level else []), y)

    def place(at: Point) -> Point:
        right = (at[0] - across[0]) / (across[1] - across[0])
        rise = (at[1] - up[0]) / (up[1] - up[0])
        return (
            LEFT + right * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - rise * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_grid(across, up, x, y, place)]
    if level:
        _, height = place((across[0], level[1]))
        parts.append(f'<path class="level" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        # Above the line, at the end where rising curves are far away.
        parts.append(_text(WIDTH - RIGHT, height - 5, level[0], "end"))
    for name, at in marks:
        left, _ = place((at, up[0]))
        parts.append(f'<path class="mark" d="M{left:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(_text(left - 4, TOP + 10, name, "end"))
    parts += [_path(line, place) for line in lines]
    said = ", ".join(line.name for line in lines)
    return (
        f'<figure class="chart"><figcaption>{escaped(title)}{_legend(lines)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label='
        f'"{escaped(f"{title}: {said}; {y.name} over {x.name}")}">{"".join(parts)}</svg></figure>'
    )


Scale = tuple[float, float, float]
"""The ends of an axis and the step of its ticks."""


def _scale(values: Sequence[float], axis: Axis) -> Scale:
    """Choose ends and tick step of an axis; ends that are not given fall on ticks."""
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = tick_step(low, high)
    return (
        math.floor(low / step + 1e-9) * step if axis.low is None else low,
        math.ceil(high / step - 1e-9) * step if axis.high is None else high,
        step,
    )


def tick_step(low: float, high: float) -> float:
    """Return 1, 2 or 5 times a power of ten that gives at most 5 steps.

    Example:
        >>> tick_step(3.1, 5.2)
        0.5
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= rough * (1 - 1e-9))


def _grid(across: Scale, up: Scale, x: Axis, y: Axis, place: Callable[[Point], Point]) -> str:
    parts = []
    for at in _ticks(*up):
        _, height = place((across[0], at))
        parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 7, height + 4, _said(y, at, up), "end"))
    for at in _ticks(*across):
        left, _ = place((at, up[0]))
        parts.append(_text(left, HEIGHT - BOTTOM + 17, _said(x, at, across), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x.name, "middle"))
    parts.append(_text(0, 12, y.name, "start"))
    return "".join(parts)


def _said(axis: Axis, at: float, scale: Scale) -> str:
    if axis.said:
        return axis.said(at)
    digits = max(0, -math.floor(math.log10(scale[2]) + 1e-9))
    return f"{at:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _ticks(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _path(line: Line, place: Callable[[Point], Point]) -> str:
    """Draw the line, interrupted where a value is missing, and its dots."""
    drawn, dots, pen = [], [], "M"
    for number, point in enumerate(line.points):
        if not math.isfinite(point[1]):
            pen = "M"
            continue
        left, height = place(point)
        drawn.append(f"{pen}{left:.1f} {height:.1f}")
        pen = "L"
        dots.append(
            f'<circle class="dot {line.kind}" data-stop="{number}" '
            f'cx="{left:.1f}" cy="{height:.1f}" r="4"/>'
        )
    path = f'<path {line.path} d="{"".join(drawn)}"/>'
    if not line.dots:
        return path
    return path + "".join(dots) + '<circle class="now" r="8"/>'  # a script puts it around one


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(text)}</text>'


def _legend(lines: Sequence[Line]) -> str:
    """Name the lines with a sample of each; empty for a single line."""
    if len(lines) < 2:
        return ""
    each = (
        f'<span><svg viewBox="0 0 26 10" aria-hidden="true"><path {line.path} d="M1 5H25"/></svg>'
        f"{escaped(line.name)}</span>"
        for line in lines
    )
    return f'<span class="legend">{"".join(each)}</span>'
