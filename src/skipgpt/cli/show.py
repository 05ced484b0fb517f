"""skipgpt show."""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import Annotated, Any

import typer

from skipgpt.cli.shared import options
from skipgpt.cli.shared.settings import data_config

NAME = "show"
HELP = """Describe a checkpoint and the keep rate of each module, and verify its files.

From its config alone, or with --text as measured on a text, with the same figures as `skipgpt eval
--text`.
""" + options.examples(
    "skipgpt show out/nano-25",
    "skipgpt show out/nano-25 --text README.md --sparsity 0.4 --json",
)


_OF_TEXT = (
    *("text_field", "control_tokens", "sparsity", "budget", "block_size", "max_tokens"),
    *("batch_size", "base", "seed", "device", "dtype", "quantize"),
)


def run(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Measure on this: text, JSONL or parquet, a folder, stdlib. Repeat."),
    ] = None,
    more: options.More = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    sparsity: options.Sparsity = None,
    budget: options.Budget = None,
    block_size: Annotated[int, typer.Option(help="Tokens per row of the text.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens to read; 0 is all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size.")] = 8,
    base: options.BaseOverride = None,
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantize: options.QuantizeLoaded = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, read, print."""
    from skipgpt.checkpoint.folder import local_folder, read_info, verify_files

    sources = [*(text or []), *(more or [])]
    if not sources:
        doing, text_to_read = "showing a checkpoint from its config", "text to measure on with it"
        options.refuse_given(context, _OF_TEXT, doing, text_to_read, "give --text FILE")
    where = local_folder(folder)
    info = read_info(where)
    verify_files(where, info)
    document: dict[str, Any] = dataclasses.asdict(info)
    found, keep = None, info.keep
    if sources:
        options.begin(quiet=quiet, seed=seed)
        from skipgpt.analysis import trace_text
        from skipgpt.checkpoint.loading import load_placed
        from skipgpt.config import Placement, as_budget
        from skipgpt.evaluation.calibrate import say_if_uncalibrated
        from skipgpt.evaluation.source_rows import source_rows

        placement = Placement(device, dtype, base, quantize)
        model, tokenizer = load_placed(
            where, placement, sparsity=sparsity, budget=as_budget(budget), merge=True
        )
        say_if_uncalibrated(model)
        config = data_config(
            block_size=block_size, text_field=text_field, control_tokens=control_tokens
        )
        read = source_rows(sources, tokenizer, model, config, max_tokens=max_tokens)
        logging.getLogger("skipgpt").info("reading %s", read.said)
        found = trace_text(model, tokenizer, read.rows, batch_size=batch_size).measured
        keep = found.keep_rates
        document["text"] = {"sources": sources, "read": read.said, **found.to_dict()}
    options.emit(document, as_json, "\n".join(_lines(info, found, keep, sources)))


def _lines(info: Any, found: Any, keep: Any, sources: list[str]) -> list[str]:
    """Format what the checkpoint is, what was measured now, and the keep rates."""
    from skipgpt.config import BUDGET_NOUNS
    from skipgpt.report.charts.keep_bars import keep_bars

    reach = ", ".join(
        f"0 to {curve[-1][0]:.0%} of {BUDGET_NOUNS[unit]}" for unit, curve in info.curves.items()
    )
    shares = ", ".join(f"{name} {value:.1%}" for name, value in info.sparsity.items())
    counts = f"{info.timed}; {info.hardware.get('device')}"
    timed = {"time counts": counts} if "time" in info.curves else {}
    rows = {
        "base model": f"{info.base} (fingerprint {info.fingerprint})",
        "router": ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(info.router).items()),
        "recipe": info.recipe,
        "stages done": ", ".join(info.stages) or "none",
        "target sparsity": f"{info.target_sparsity:.0%} of {BUDGET_NOUNS[info.budget]}",
        "measured": shares or "not measured",
        "sparsity range": reach or "not calibrated (argmax)",
        **timed,
        "files": ", ".join(sorted(info.files)) + " (verified)",
    }
    lines = [f"{name:16} {value}" for name, value in rows.items()]
    if not keep:
        return [*lines, f"{'keep rates':16} not in this checkpoint; --text FILE measures them"]
    of = f"on {', '.join(sources)}" if sources else "on held-out text"
    said = [str(found)] if found else []
    drawn = keep_bars(keep, ascii_only=not options.shows("█▏·", sys.stdout))
    return [*lines, "", *said, f"Share of tokens that run each module, {of}:", drawn]
