"""The curves and maps of a report as one picture, through matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

from torch.nn.functional import adaptive_avg_pool1d

from skipgpt.errors import MissingExtraError
from skipgpt.report.content import Report

ATTN, MLP = "#1f6fb5", "#d8740f"  # as in page.css; safe for colour blindness
CURVE, DOTS = "#55408c", 160
COLUMNS = 1600
"""Maximum columns of a map; each is the mean of its tokens."""

Picture = Literal["png", "svg"]


def to_picture(reports: Mapping[str, Report], kind: Picture) -> bytes:
    """Draw loss, keep rates by layer and by position, and both maps; one row per checkpoint.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "drawing the report") from error
    figure = Figure(figsize=(13, 6.4 * len(reports)), layout="constrained")
    parts = figure.subfigures(len(reports), 1, squeeze=False)[:, 0]
    for part, (name, report) in zip(parts, reports.items(), strict=True):
        part.suptitle(name)
        axes = part.subplot_mosaic(
            [["loss", "layers", "places"], ["attn", "attn", "attn"], ["mlp", "mlp", "mlp"]],
            height_ratios=[3, 1.4, 1.4],
        )
        _loss(axes["loss"], report)
        _layers(axes["layers"], report)
        _places(axes["places"], report)
        for number, (kind_of, said) in enumerate((("attn", "attention"), ("mlp", "MLP"))):
            _map(axes[kind_of], report, number, said)
    data = io.BytesIO()
    # Without date and random ids the same report gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "skipgpt"}):
        figure.savefig(
            data, format=kind, dpi=DOTS, metadata={"Date": None} if kind == "svg" else {}
        )
    return data.getvalue()


def _loss(axes: Any, report: Report) -> None:
    axes.plot(
        [100 * stop.measured.sparsity["module"] for stop in report.stops],
        [stop.measured.nll_per_token for stop in report.stops],
        "o-",
        color=CURVE,
        label="routed",
    )
    axes.axhline(report.dense.nll_per_token, color="black", linestyle=":", label="dense base")
    if (knee := report.table("stress").facts.get("knee")) is not None:
        axes.axvline(100 * knee, color="grey", linestyle="--", label="knee")
    axes.set(xlabel="modules skipped, %", ylabel="nats per token", title="loss against budget")
    axes.legend(frameon=False)


def _layers(axes: Any, report: Report) -> None:
    table = report.table("modules")
    layers = table.column("layer")
    for shift, kind, colour, hatch in ((-0.2, "attn", ATTN, ""), (0.2, "mlp", MLP, "///")):
        axes.bar(
            [layer + shift for layer in layers],
            [100 * rate for rate in table.column(f"{kind} keep rate")],
            width=0.4,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label={"attn": "attention", "mlp": "MLP"}[kind],
        )
    axes.set(xlabel="layer", ylabel="tokens that run it, %", ylim=(0, 125), title="by layer")
    axes.legend(frameon=False, ncols=2, loc="upper center")


def _places(axes: Any, report: Report) -> None:
    table = report.table("positions")
    for kind, colour, style, said in (("attn", ATTN, "-", "attention"), ("mlp", MLP, "--", "MLP")):
        rates = [100 * rate for rate in table.column(f"{kind} keep rate")]
        axes.plot(table.column("position"), rates, style, color=colour, label=said)
    axes.set(xlabel="place in the row", ylabel="modules kept, %", ylim=(0, 125), title="by place")
    axes.legend(frameon=False, ncols=2, loc="upper center")


def _map(axes: Any, report: Report, kind: int, said: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    keep = report.stops[report.at].keep[:, kind, : report.shown].float()
    layers, tokens = keep.shape
    rates = adaptive_avg_pool1d(keep, min(tokens, COLUMNS))
    axes.imshow(
        rates.numpy(),
        cmap=LinearSegmentedColormap.from_list(said, ["#e9eae7", (ATTN, MLP)[kind]]),
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(0, tokens, layers + 0.5, 0.5),
    )
    axes.set(ylabel=f"{said}, layer", xlabel="token" if kind else "")
