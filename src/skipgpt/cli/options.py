"""The options that every verb shares, and what they set in motion."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error arose.")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data", help="Text, JSONL or parquet files, a folder, a hub id, or stdlib. Repeat."
    ),
]
More = Annotated[
    list[str] | None,
    typer.Argument(metavar="SRC", help="More sources, as a shell's pattern gives them."),
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
        "--control-tokens", help="Special tokens written in the text count as such, not as text."
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option("--sparsity", help="Share to save, of --budget; the trained target if absent."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="What --sparsity counts: modules, flops or time; as it was trained if absent.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
BaseOverride = Annotated[
    str | None,
    typer.Option("--base", help="Where the base model lies, if it has moved."),
]


def examples(*lines: str) -> str:
    """The end of a help text."""
    return "\n\nExamples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


def begin(*, quiet: bool, seed: int | None = None) -> None:
    """Seed everything and settle who may write to standard error."""
    import warnings

    import torch
    from transformers.utils import logging as transformers_logging

    from skipgpt.model.quantized import silence
    from skipgpt.processes import is_first

    if seed is not None:
        torch.manual_seed(seed)
    transformers_logging.set_verbosity_error()
    silence()  # PEFT imports bitsandbytes wherever it is installed
    quiet = quiet or not is_first()
    if quiet or not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    if quiet:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process is
    warnings.simplefilter("ignore")
    logger = logging.getLogger("skipgpt")
    logger.setLevel(logging.INFO)
    logger.handlers = [logging.StreamHandler(sys.stderr)]


def shows(letters: str, stream: Any) -> bool:
    """Whether a stream can write these letters in its encoding."""
    try:
        letters.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def emit(result: Any, as_json: bool, text: str) -> None:
    """Print a result, as one JSON document or for people; of several processes, the first does."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(json.dumps(result, indent=2) if as_json else text)
