"""skipgpt generate."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from skipgpt.cli import options

NAME = "generate"
HELP = """Continue a prompt with a checkpoint's model; without one, read it from a pipe.
""" + options.examples(
    'skipgpt generate out/nano-25 "def main():" --max-new-tokens 40',
    "cat prompt.txt | skipgpt generate out/nano-25 --sparsity 0.4 --show-routing",
)


def run(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    prompt: Annotated[str | None, typer.Argument(help="Text to continue.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to add.")] = 64,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy.")] = False,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    control_tokens: options.ControlTokens = False,
    show_routing: Annotated[
        bool,
        typer.Option("--show-routing", help="Colour each token by the share of modules it ran."),
    ] = False,
    sparsity: options.Sparsity = None,
    budget: options.Budget = None,
    base: options.BaseOverride = None,
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantize: options.QuantizeLoaded = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, generate, print."""
    from skipgpt.errors import ConfigError

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if not prompt:
        raise ConfigError(
            "reading the prompt", got="none", expected="an argument or text on standard input"
        )
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.analysis.live import TokenRun
    from skipgpt.checkpoint import load
    from skipgpt.checkpoint_folder import local_folder, read_info
    from skipgpt.config import as_budget
    from skipgpt.generation import generate
    from skipgpt.report.live_text import live_text
    from skipgpt.report.terminal import Scale, fit_for, has_colour

    where = local_folder(folder)
    model, tokenizer = load(
        where,
        sparsity=sparsity,
        budget=as_budget(budget),
        base=base,
        merge=True,
        device=device,
        dtype=dtype,
        quantize=quantize,
    )
    how: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature if sample else 0.0,
        "control_tokens": control_tokens,
    }  # fmt: skip
    scale = Scale.around(read_info(where).target_sparsity if sparsity is None else sparsity)
    live = show_routing and not as_json
    told: list[TokenRun] = []
    if live:
        with live_text(sys.stdout, sys.stderr, scale) as tell:
            result = generate(model, tokenizer, prompt, on_token=tell, **how)
        print()
    else:
        on_token = told.append if show_routing else None
        result = generate(model, tokenizer, prompt, on_token=on_token, **how)
        tokens = {"tokens": [token.to_dict() for token in told]} if show_routing else {}
        options.emit(
            {**result.to_dict(), **tokens}, as_json, fit_for(sys.stdout, prompt + result.text)
        )
    if not (as_json or quiet):
        saved = 1 - result.cache_bytes / max(1, result.dense_cache_bytes)
        print(
            f"[{result.new_tokens} tokens, {result.sparsity:.1%} of modules skipped; cache "
            f"{result.cache_bytes:,} bytes, {saved:.1%} less than dense]",
            file=sys.stderr,
        )
        if live and has_colour(sys.stdout) and has_colour(sys.stderr):
            print(f"[{scale.legend()}]", file=sys.stderr)
