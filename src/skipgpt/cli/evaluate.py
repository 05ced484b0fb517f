"""skipgpt eval."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, cast

import typer

from skipgpt.cli.shared import options
from skipgpt.cli.shared.settings import data_config
from skipgpt.errors import ConfigError

NAME = "eval"
HELP = """Measure a checkpoint on text or published tasks, with the sparsity of the same run.

Text: loss and perplexity, or bits per byte, in one of four forms (docs/evaluation.md), and
closeness to the dense base model: KL divergence and top-1 agreement. Tasks: through
lm-evaluation-harness, for the checkpoint and the dense base model.
""" + options.examples(
    "skipgpt eval out/nano-25 --text README.md --sparsity 0.4 --json",
    "skipgpt eval out/nano-25 --text README.md --block-size 64 --continuations 20",
    "skipgpt eval out/8b-25 --suite paper --use-cache out/answers --device cuda",
)

Tasks = Annotated[
    str | None,
    typer.Option(help="Tasks of lm-evaluation-harness, comma-separated; arc_easy@25 has 25 shots."),
]
Suite = Annotated[
    str | None, typer.Option(help="paper: the paper's seven tasks and shots; or zero-shot.")
]
TaskDir = Annotated[
    Path | None, typer.Option(help="Folder of task files, YAML or JSONL, with local data.")
]
Limit = Annotated[int, typer.Option(min=0, help="First items of each task; 0 is all.")]
NoCloseness = Annotated[
    bool,
    typer.Option(
        "--no-closeness",
        help="Leave out closeness to dense: halves the forwards, saves a copy of a healed model.",
    ),
]
Continuations = Annotated[
    int,
    typer.Option(
        min=0,
        help="Rows to continue greedily, for loss under the dense model and repetition.",
    ),
]
UseCache = Annotated[
    Path | None,
    typer.Option(help="Folder that caches responses, so that an interrupted run can continue."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Batch size.  [default: 8 for text, automatic for tasks]"),
]

_OF_TEXT = (
    *("form", "window", "stride", "max_tokens", "block_size", "max_documents"),
    *("text_field", "control_tokens", "no_closeness", "continuations"),
)
_OF_TASKS = ("task_dir", "limit", "use_cache")


def run(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text, JSONL or parquet files, a folder, stdlib. Repeat."),
    ] = None,
    more: options.More = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    corpus: Annotated[
        str | None, typer.Option(help="wikitext2 or ptb, from the hub, or from a file by --text.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            help="Protocol: blocks, fixed, sliding or bits (docs/evaluation.md).  "
            "[default: blocks; fixed for a corpus]"
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option(help="Tokens per row of fixed, sliding and bits; 0 is the form's default."),
    ] = 0,
    stride: Annotated[int, typer.Option(help="Stride of sliding; 0 is half a window.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens to read; 0 is all.")] = 0,
    no_closeness: NoCloseness = False,
    continuations: Continuations = 0,
    tasks: Tasks = None,
    suite: Suite = None,
    task_dir: TaskDir = None,
    limit: Limit = 0,
    use_cache: UseCache = None,
    sparsity: options.Sparsity = None,
    budget: options.Budget = None,
    block_size: Annotated[int, typer.Option(help="Tokens per row of blocks.")] = 256,
    batch_size: BatchSize = None,
    max_documents: Annotated[int, typer.Option(help="Maximum documents to read; 0 is all.")] = 0,
    execution: Annotated[str, typer.Option(help="dense, gated, sparse or auto.")] = "auto",
    base: options.BaseOverride = None,
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantize: options.QuantizeLoaded = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, evaluate, print."""
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.config import Placement, as_budget
    from skipgpt.evaluation.protocols import Form, FormName, cut_text
    from skipgpt.model.state import Execution
    from skipgpt.model.state import execution as executing

    sources = [*(text or []), *(more or [])]
    of_text, of_tasks = bool(sources or corpus), bool(tasks or suite)
    if of_text == of_tasks:
        raise ConfigError(
            "choosing what to measure on",
            got="text and tasks" if of_text else "neither text nor tasks",
            expected="--text or --corpus, or else --tasks or --suite",
        )
    name = cast("FormName", form or ("fixed" if corpus else "blocks"))
    if corpus:
        known = "the fields and documents that the corpus has on the hub"
        of_other_text = ("text_field", "max_documents")
        options.refuse_given(context, of_other_text, f"reading the corpus {corpus}", known)
    kind, ignored = ("text", _OF_TASKS) if of_text else ("tasks", _OF_TEXT)
    options.refuse_given(context, ignored, f"measuring on {kind}", f"options of {kind}")
    if name != "blocks" or window:
        cutting = f"cutting the text in form {name}" + " with --window" * (name == "blocks")
        options.refuse_given(context, ("block_size",), cutting, "--window for its rows")
    placement = Placement(device, dtype, base, quantize)
    if of_tasks:
        from skipgpt.evaluation.harness.benchmark import Setting, benchmark

        setting = Setting(
            task_dir=task_dir,
            limit=limit,
            batch_size=batch_size or "auto",
            cache=use_cache,
            execution=cast("Execution", execution),
            placement=placement,
        )
        names, unit = tasks.split(",") if tasks else [], as_budget(budget)
        found = benchmark(
            folder, names, suite=suite, sparsity=sparsity, budget=unit, setting=setting
        )
        options.emit(found.to_dict(), as_json, found.to_terminal())
        return

    from skipgpt.checkpoint.folder import local_folder, read_info
    from skipgpt.checkpoint.loading import dense_base_of, load_placed
    from skipgpt.evaluation.cache_memory import cache_memory
    from skipgpt.evaluation.calibrate import say_if_uncalibrated
    from skipgpt.evaluation.text_result import measure_text

    info = None if no_closeness else read_info(local_folder(folder))
    model, tokenizer = load_placed(
        folder, placement, sparsity=sparsity, budget=as_budget(budget), merge=True
    )
    say_if_uncalibrated(model)
    config = data_config(
        block_size=block_size,
        max_documents=max_documents,
        text_field=text_field,
        control_tokens=control_tokens,
    )
    rows, how = batch_size or 8, Form(name, window, stride)
    with executing(model, cast("Execution", execution)):
        cut = cut_text(
            sources, tokenizer, model, how, corpus=corpus, config=config, max_tokens=max_tokens
        )
        logging.getLogger("skipgpt").info(cut.said)
        dense = None if info is None else dense_base_of(info, model, placement)
        result = measure_text(
            model, cut, batch_size=rows, closeness_to=dense, continuations=continuations
        )
        cache = cache_memory(model, cut.first_rows(rows))
    document = {**result.to_dict(), "cache": cache.to_dict()}
    options.emit(document, as_json, f"{result}\n{cache}")
