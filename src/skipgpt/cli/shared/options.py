"""The options that all verbs share, and their effects."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Annotated, Any

import typer

from skipgpt.errors import ConfigError, SkipGPTError
from skipgpt.system.atomic import plain_json

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto is float32 on a CPU, bfloat16 elsewhere.")
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", help="Hold the base in 8bit or 4bit, through bitsandbytes."),
]
QuantizeLoaded = Annotated[
    str | None,
    typer.Option("--quantize", help="int8 runs linear layers in 8 bits, faster on a CPU."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only warnings and errors on standard error.")
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")]
_DATA = typer.Option(
    "--data", help="Text, JSONL or parquet files, a folder, a hub id, or stdlib. Repeat."
)
Data = Annotated[list[str], _DATA]
DataIfAny = Annotated[list[str] | None, _DATA]
More = Annotated[
    list[str] | None,
    typer.Argument(metavar="SRC", help="More sources, as expanded from a shell pattern."),
]
TextField = Annotated[
    str | None,
    typer.Option(
        "--text-field", help="Field of JSONL, parquet or hub rows that holds text.  [default: text]"
    ),
]
ControlTokens = Annotated[
    bool,
    typer.Option(
        "--control-tokens", help="Read special tokens written in the text as such, not as text."
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option("--sparsity", help="Share of --budget to save; the trained target if absent."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="What --sparsity counts: modules, flops or time; as trained if absent.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
BaseOverride = Annotated[
    str | None,
    typer.Option("--base", help="Location of the base model, if it has moved."),
]

_document: IO[str] | None = None
"""Where `emit` prints the JSON document; standard output where None."""


def examples(*lines: str) -> str:
    """Format examples as the end of a help text."""
    return "\n\nExamples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


def begin(*, quiet: bool, seed: int | None = None) -> None:
    """Seed torch, and set up logging and output streams."""
    import warnings

    import torch
    from transformers.utils import logging as transformers_logging

    from skipgpt.model.loading.bitsandbytes import silence
    from skipgpt.system.distributed import is_first

    _settle_stdout()
    if seed is not None:
        torch.manual_seed(seed)
    transformers_logging.set_verbosity_error()
    silence()  # PEFT imports bitsandbytes wherever it is installed
    silent, errors = quiet or not is_first(), sys.stderr
    if silent or not errors.isatty():
        transformers_logging.disable_progress_bar()
    if silent:  # bars, also those of libraries
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process is
    warnings.simplefilter("ignore")
    logger = logging.getLogger("skipgpt")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.handlers = [logging.StreamHandler(errors if is_first() else sys.stderr)]


def refuse_given(
    context: typer.Context, names: Collection[str], doing: str, expected: str, todo: str = ""
) -> None:
    """Refuse options that the user gave and that this use of a command would ignore.

    `names` are parameters of its function, `doing` says as a participle what the command does, and
    `todo` what the user can do beside leaving the option out.

    Raises:
        ConfigError: one of them was given.
    """
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is not None and source.name != "DEFAULT":
            raise ConfigError(
                doing,
                got=option.opts[0],
                expected=expected,
                todo=f"{todo}, or leave it out" if todo else "leave it out",
            )


def shows(letters: str, stream: Any) -> bool:
    """Return whether a stream's encoding has these characters."""
    try:
        letters.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _settle_stdout() -> None:
    """Reserve standard output for `emit` under --json; libraries get standard error."""
    global _document
    out, errors = sys.__stdout__, sys.__stderr__
    # Not where a program that calls this command has replaced standard output.
    if "--json" not in sys.argv or _document or not (out and errors) or sys.stdout is not out:
        return
    out.flush()
    _document = os.fdopen(os.dup(out.fileno()), "w", encoding="ascii")
    os.dup2(errors.fileno(), out.fileno())  # also what native code writes


def emit(result: Any, as_json: bool, text: str, *, indent: int | None = 2) -> None:
    """Print a result as one JSON document or as text; of several processes, only the first does."""
    if os.environ.get("RANK", "0") != "0":
        return
    out = _document or sys.stdout if as_json else sys.stdout
    with printing(out):
        text = json.dumps(plain_json(result), indent=indent) if as_json else text
        print(text, file=out, flush=True)


@contextmanager
def printing(out: IO[str]) -> Iterator[None]:
    """Report output that cannot be written; a reader who closes it is no error.

    Raises:
        SkipGPTError: it cannot.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        with open(os.devnull, "w") as nothing:  # for what Python flushes at its end
            os.dup2(nothing.fileno(), out.fileno())
        raise SkipGPTError(
            "writing to standard output",
            got=error.strerror or str(error),
            expected="a terminal, a pipe, or a file with room",
            todo="files that the command wrote are kept",
        ) from error
