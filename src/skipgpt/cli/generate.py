"""skipgpt generate."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer

from skipgpt.cli.shared import options
from skipgpt.errors import ConfigError

logger = logging.getLogger("skipgpt")

NAME = "generate"
HELP = """Continue a prompt with a checkpoint's model.

A prompt that is not given is read from standard input. The model reads it as it is. With --chat it
is the user's turn in the model's chat template, as instruct models expect, and only the reply is
printed.
""" + options.examples(
    'skipgpt generate out/nano-25 "def main():" --max-new-tokens 40',
    'skipgpt generate out/qwen-25 --chat "What do cats do?"',
    "cat prompt.txt | skipgpt generate out/nano-25 --sparsity 0.4 --show-routing",
)


def run(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    prompt: Annotated[str | None, typer.Argument(help="Text to continue.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum new tokens.")] = 64,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="For --sample, above 0; 1 if absent.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")
    ] = False,
    control_tokens: options.ControlTokens = False,
    show_routing: Annotated[
        bool,
        typer.Option("--show-routing", help="Colour each token by the share of modules it ran."),
    ] = False,
    sparsity: options.Sparsity = None,
    budget: options.Budget = None,
    base: options.BaseOverride = None,
    as_json: options.Json = False,
    seed: Annotated[int | None, typer.Option(help="For --sample; 0 if absent.")] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantize: options.QuantizeLoaded = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Parse, generate, print."""
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if not prompt:
        raise ConfigError(
            "reading the prompt", got="none", expected="an argument or text on standard input"
        )
    if not sample:
        doing, right = "generating greedy text", "--sample beside it"
        options.refuse_given(context, ("temperature", "seed"), doing, right, "add --sample")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(
            "reading the options",
            got=f"--temperature {temperature}",
            expected="above 0",
            todo="for greedy text leave out --sample and --temperature",
        )
    options.begin(quiet=quiet, seed=seed or 0)
    from skipgpt.checkpoint.folder import local_folder, own_sparsity
    from skipgpt.checkpoint.loading import load_placed
    from skipgpt.config import Placement, as_budget
    from skipgpt.generation import generate
    from skipgpt.generation.live import TokenRun
    from skipgpt.model.loading.generation_settings import warn_left_out
    from skipgpt.report.live_text import live_text
    from skipgpt.report.terminal import Scale, fit_for, has_colour

    where, placement = local_folder(folder), Placement(device, dtype, base, quantize)
    model, tokenizer = load_placed(
        where, placement, sparsity=sparsity, budget=as_budget(budget), merge=True
    )
    warn_left_out(model.generation_config, sampling=sample)
    if tokenizer.chat_template and not chat:
        logger.info("the prompt is read as it is; --chat puts it into the model's chat template")
    how: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": (1.0 if temperature is None else temperature) if sample else 0.0,
        "chat": chat,
        "control_tokens": control_tokens,
    }
    scale = Scale.around(own_sparsity(where) if sparsity is None else sparsity)
    live = show_routing and not as_json
    told: list[TokenRun] = []
    if live:
        with options.printing(sys.stdout):
            with live_text(sys.stdout, sys.stderr, scale) as tell:
                result = generate(model, tokenizer, prompt, on_token=tell, **how)
            print(flush=True)
    else:
        on_token = told.append if show_routing else None
        result = generate(model, tokenizer, prompt, on_token=on_token, **how)
        tokens = {"tokens": [token.to_dict() for token in told]} if show_routing else {}
        text = fit_for(sys.stdout, result.text if chat else prompt + result.text)
        options.emit({**result.to_dict(), **tokens}, as_json, text)
    if not (as_json or quiet):
        saved = 1 - result.cache_bytes / max(1, result.dense_cache_bytes)
        print(
            f"[{result.new_tokens} tokens, {result.sparsity:.1%} of modules skipped; cache "
            f"{result.cache_bytes:,} bytes, {saved:.1%} less than dense]",
            file=sys.stderr,
        )
        if live and has_colour(sys.stdout) and has_colour(sys.stderr):
            print(f"[{scale.legend()}]", file=sys.stderr)
