"""skipgpt bench."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, cast

import typer

from skipgpt.benchmark.executions import EXECUTIONS, Timed
from skipgpt.cli.shared import options, settings
from skipgpt.errors import ConfigError

NAME = "bench"
HELP = """Time the model against its dense base and against the ideal speed-up.

Dense and routed runs alternate in one process. A checkpoint runs its learned routes on real text; a
shape has random weights and random routes. Times prefill, decode and generate, and with --phases a
training step of stage router or lora, over batch sizes, prompt lengths and sparsities.
""" + options.examples(
    "skipgpt bench out/nano-25 --sparsity 0.25,0.4 --prompt-tokens 128,512",
    "skipgpt bench --shape llama-160m --phases prefill,decode,lora_step --executions "
    "sparse,gated,static --out out/bench",
)


_OF_A_CHECKPOINT = ("data", "text_field", "control_tokens", "base")


def run(
    context: typer.Context,
    folder: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="A checkpoint; or give --shape.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Random weights of this shape, such as llama-160m.")
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="Shares of --budget to save, comma-separated; of modules for a shape.  [default: "
            "the one that the checkpoint is set to; of a shape 0.25,0.4]"
        ),
    ] = None,
    budget: options.Budget = None,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1",
    prompt_tokens: Annotated[str, typer.Option(help="Prompt lengths, comma-separated.")] = "512",
    decode_tokens: Annotated[int, typer.Option(help="Tokens decoded after the prompt.")] = 16,
    phases: Annotated[
        str,
        typer.Option(help="prefill, decode, generate, router_step, lora_step, comma-separated."),
    ] = "prefill,decode,generate",
    executions: Annotated[
        str,
        typer.Option(
            help="What runs beside dense, comma-separated: "
            + "; ".join(f"{name} ({words})" for name, words in EXECUTIONS.items())
            + "."
        ),
    ] = "auto,transformers",
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 7,
    data: Annotated[
        list[str] | None, typer.Option(help="Text for prompts of a checkpoint.  [default: stdlib]")
    ] = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, bench.md and bench.svg.")
    ] = None,
    base: options.BaseOverride = None,
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, measure, print."""
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.benchmark.bench import bench
    from skipgpt.benchmark.grid import Grid, PhaseName
    from skipgpt.benchmark.pages import write
    from skipgpt.benchmark.subject import (
        check_budget_of_shape,
        subject_of_checkpoint,
        subject_of_shape,
    )
    from skipgpt.config import as_budget
    from skipgpt.system.folder_lock import writing_to
    from skipgpt.system.progress import advancing
    from skipgpt.system.stopping import NOTHING_KEPT, stoppable

    if (folder is None) == (shape is None):
        raise ConfigError(
            "choosing what to time", got=f"DIR {folder}, --shape {shape}", expected="one of them"
        )
    unit = as_budget(budget)
    if shape:
        check_budget_of_shape(unit)
        doing, right = f"timing the shape {shape}", "options of random weights and random tokens"
        options.refuse_given(context, _OF_A_CHECKPOINT, doing, right)
    named = tuple(phases.split(","))
    if not {"decode", "generate"} & set(named):
        doing, right = f"timing {phases}", "the phase decode or generate, which decode tokens"
        options.refuse_given(context, ("decode_tokens",), doing, right, "add one to --phases")
    grid = Grid(
        phases=cast("tuple[PhaseName, ...]", named),
        batch_sizes=tuple(settings.numbers("--batch-sizes", batch_sizes, int)),
        prompt_tokens=tuple(settings.numbers("--prompt-tokens", prompt_tokens, int)),
        decode_tokens=decode_tokens,
        sparsities=tuple(settings.numbers("--sparsity", sparsity, float)) if sparsity else None,
        executions=cast("tuple[Timed, ...]", tuple(executions.split(","))),
        repeats=repeats,
        budget=unit,
    )
    # A folder that cannot be written is refused before anything is measured.
    target = writing_to(out) if out else nullcontext()
    with stoppable("timing", lambda: NOTHING_KEPT), advancing(), target:
        subject = (
            subject_of_shape(shape, device=device, dtype=dtype)
            if shape
            else subject_of_checkpoint(
                str(folder),
                data or ["stdlib"],
                tokens=max(grid.batch_sizes) * max(grid.prompt_tokens),
                config=settings.data_config(text_field=text_field, control_tokens=control_tokens),
                base=base,
                device=device,
                dtype=dtype,
            )
        )
        result = bench(subject, grid)
        if out:
            write(result, out)
    options.emit(result.to_dict(), as_json, result.to_terminal())
