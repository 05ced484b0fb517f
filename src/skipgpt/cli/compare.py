"""skipgpt compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from skipgpt.cli.shared import options, settings

NAME = "compare"
INTRO = "Train or compute methods on one base and one text, and measure them at the same budget."
NOTES = """+lora after dense, router, fit or a static method heals it with LoRA; +stand_in after a
static method runs fitted stand-ins in place of what it removes; @paper uses that recipe;
:key=value changes a training setting. All methods share steps, batch size and data. Results are
cached in --out, so that adding a method runs only that one.
""" + options.examples(
    "skipgpt compare nano --data stdlib --methods dense,router,router@paper,sleb --steps 200 "
    "--out out/compare",
    "skipgpt compare llama-8b --data corpus --methods router+lora,blockpruner+stand_in+lora "
    "--sparsity 0.25,0.4 --budget modules --seeds 0,1 --device cuda --out out/8b",
)
HELP = f"{INTRO}\n\n{NOTES}"


class Command(TyperCommand):
    """Lists the methods in its help, the only time that the registry and so torch are imported."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from skipgpt.comparison.method import KINDS

        lines = "\n".join(f"  {name:<17}{what}" for name, what in KINDS.items())
        self.help = f"{INTRO}\n\nMethods, by commas:\n\n\b\n{lines}\n\n{NOTES}"
        super().format_help(ctx, formatter)


def run(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Hub id, folder, GGUF file, or nano.")
    ],
    data: options.Data,
    methods: Annotated[str, typer.Option(help="Methods to compare, comma-separated.")],
    out: Annotated[Path, typer.Option(help="Folder for results and checkpoints.")],
    more: options.More = None,
    sparsity: Annotated[
        str, typer.Option(help="Shares of --budget to save, comma-separated.")
    ] = "0.25",
    budget: Annotated[
        str | None,
        typer.Option(
            help="What --sparsity counts: modules, flops, or time, as measured by "
            "`skipgpt profile`.  [default: as --config or the recipe: default flops, paper modules]"
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Random seeds, comma-separated; several give a spread.")
    ] = "0",
    dial: Annotated[
        str | None,
        typer.Option(help="Further sparsities to measure every checkpoint at, comma-separated."),
    ] = None,
    steps: settings.Steps = None,
    batch_size: settings.BatchSize = None,
    block_size: settings.BlockSize = None,
    text_field: options.TextField = None,
    control_tokens: options.ControlTokens = False,
    lr: settings.Lr = None,
    recipe: settings.Recipe = None,
    config: settings.Config = None,
    set_: settings.Set = None,
    as_json: options.Json = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, compare, print the table."""
    options.begin(quiet=quiet)
    from skipgpt.comparison.compare import compare
    from skipgpt.comparison.method import split_methods

    named = {
        "recipe": recipe,
        "batch_size": batch_size,
        "data.block_size": block_size,
        "data.text_field": text_field,
        "data.control_tokens": control_tokens or None,
        **settings.for_stages("steps", steps),
        **settings.for_stages("learning_rate", lr),
    }
    given = settings.gathered(config, set_, named)
    result = compare(
        base,
        [*data, *(more or [])],
        out,
        split_methods(methods),
        sparsities=settings.numbers("--sparsity", sparsity, float),
        budget=budget,  # type: ignore[arg-type]
        seeds=settings.numbers("--seeds", seeds, int),
        dial=settings.numbers("--dial", dial, float) if dial else (),
        recipe=str(given.pop("recipe", "default")),
        settings=given,
        device=device,
        dtype=dtype,
    )
    options.emit(result.to_dict(), as_json, f"{result.to_terminal()}\n{out}")
