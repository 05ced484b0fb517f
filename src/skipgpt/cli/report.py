"""skipgpt report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skipgpt.cli.evaluate import Limit, TaskDir, Tasks
from skipgpt.cli.shared import options
from skipgpt.cli.shared.settings import data_config
from skipgpt.errors import ConfigError

NAME = "report"
HELP = """Write a page on what a checkpoint skips, costs and loses on a text.

One self-contained file: the text coloured by compute, maps of layers and tokens, loss at each
sparsity, warnings, and how the checkpoint was trained. Several checkpoints are shown side by side
on the same text. --tasks also scores tasks at each sparsity. --run shows a training run instead,
also while it is running.
""" + options.examples(
    "skipgpt report out/nano-25 --data README.md -o report.html",
    "skipgpt report out/a out/b --data corpus/test.jsonl --format md -o report.md",
)


_OF_TEXT = (
    *("data", "text_field", "control_tokens", "sparsity", "budget", "block_size", "max_tokens"),
    *("max_documents", "batch_size", "tasks", "task_dir", "limit", "base", "seed", "device"),
    *("dtype", "quantize"),
)


def run(
    context: typer.Context,
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="DIR…", help="A checkpoint, or several.")
    ] = None,
    data: options.DataIfAny = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    run: Annotated[Path | None, typer.Option(help="Folder of a training run.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File to write.  [default: report.html; none with --json]"
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="html, md, json, png or svg.  [default: by the suffix of --out]"
        ),
    ] = None,
    sparsity: options.Sparsity = None,
    budget: options.Budget = None,
    block_size: Annotated[int, typer.Option(help="Tokens per row.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens to read; 0 is all.")] = 8192,
    max_documents: Annotated[int, typer.Option(help="Maximum documents to read; 0 is all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size.")] = 8,
    tasks: Tasks = None,
    task_dir: TaskDir = None,
    limit: Limit = 0,
    base: options.BaseOverride = None,
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantize: options.QuantizeLoaded = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, measure, write, print."""
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.report.writing import format_of, kept_for, rendered, write

    kind = format_of(out, form)
    if bool(folders) == bool(run):
        got = "a checkpoint and a run" if run else "neither a checkpoint nor a run"
        right = "skipgpt report DIR --data SRC, or skipgpt report --run DIR"
        raise ConfigError("choosing what to report on", got=got, expected=right)
    path = out or (None if as_json else Path(f"report.{kind}"))
    if run:
        right = "--run alone, which reads what the run has written"
        options.refuse_given(context, _OF_TEXT, "reporting on a run", right)
        with kept_for(path):
            _of_run(run, path, kind, as_json)
        return
    if not data:
        raise ConfigError(
            "reading the data", got="no source", expected="one or more", todo="give --data SRC"
        )
    if not tasks:
        of_tasks = ("task_dir", "limit")
        options.refuse_given(context, of_tasks, "choosing the tasks", "--tasks beside it")

    from skipgpt.config import Placement, as_budget
    from skipgpt.report.gather import gather
    from skipgpt.report.side_by_side import gather_several

    config = data_config(
        block_size=block_size,
        max_documents=max_documents,
        text_field=text_field,
        control_tokens=control_tokens,
    )
    given: dict[str, Any] = {
        "sparsity": sparsity, "budget": as_budget(budget), "max_tokens": max_tokens,
        "batch_size": batch_size,
        "tasks": tasks.split(",") if tasks else (), "task_dir": task_dir, "limit": limit,
        "placement": Placement(device, dtype, base, quantize),
    }  # fmt: skip
    many = folders or []
    with kept_for(path):
        report = (
            gather(many[0], data, config, **given)
            if len(many) == 1
            else gather_several(many, data, config, **given)
        )
        if path:
            write(path, rendered(report, kind))
    options.emit(report.to_dict(), as_json, f"{report}\n{path}")


def _of_run(folder: Path, path: Path | None, kind: str, as_json: bool) -> None:
    import json

    from skipgpt.report.pages.run_page import run_in, run_page, run_summary
    from skipgpt.report.writing import write

    if kind not in ("html", "json"):
        raise ConfigError(
            "choosing the format of the report", got=kind, expected="html or json of a run"
        )
    found = run_in(folder)
    summary = run_summary(found)
    if path:
        content = run_page(found) if kind == "html" else json.dumps(summary, indent=2) + "\n"
        write(path, content.encode())
    options.emit(summary, as_json, str(path))
