"""Keep rates by layer as two columns of bars, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_CELLS = 25
_EIGHTHS = " ▏▎▍▌▋▊▉"


def keep_bars(keep: Mapping[str, Sequence[float]], *, ascii_only: bool = False) -> str:
    """Draw a line per layer, attention left and MLP right, each a number and a bar.

    Args:
        keep: share of tokens that ran `attn` and `mlp`, by layer.
        ascii_only: for outputs that cannot show block characters.

    Example:
        >>> print(keep_bars({"attn": [1.0, 0.5], "mlp": [0.25, 0.0]}, ascii_only=True))
        layer  attention                         MLP
            1  100.0% #########################   25.0% ######...................
            2   50.0% ############.............    0.0% .........................
         mean   75.0% ###################......   12.5% ###......................
    """
    attn, mlp = keep["attn"], keep["mlp"]
    lines = [f"layer  {'attention':{_CELLS + 7}}  MLP"]
    rows = [(str(n), *rates) for n, rates in enumerate(zip(attn, mlp, strict=True), 1)]
    rows.append(("mean", sum(attn) / len(attn), sum(mlp) / len(mlp)))
    for name, *rates in rows:
        both = "  ".join(f"{rate:6.1%} {_bar(rate, ascii_only)}" for rate in rates)
        lines.append(f"{name:>5}  {both}")
    return "\n".join(lines)


def _bar(rate: float, ascii_only: bool) -> str:
    """Draw a bar, rounded to a cell in ASCII, to an eighth of one in blocks."""
    if ascii_only:
        return ("#" * round(rate * _CELLS)).ljust(_CELLS, ".")
    full, eighths = divmod(round(rate * _CELLS * 8), 8)
    part = _EIGHTHS[eighths] if eighths else ""
    return ("█" * full + part).ljust(_CELLS, "·")
