"""The `skipgpt` command: one file per verb; each parses, calls one library function and prints.

Results go to standard output, everything else to standard error. Exit status 0 is success, 1
failure, 2 wrong usage.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys

import typer

from skipgpt.cli import (
    bench,
    compare,
    convert,
    demo,
    evaluate,
    export,
    families,
    generate,
    profile,
    report,
    serve,
    show,
    train,
)
from skipgpt.errors import ConfigError, SkipGPTError

app = typer.Typer(
    name="skipgpt",
    help="Turn a pretrained LLM into one that decides, for every token, which modules to run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    demo, train, evaluate, compare, bench, profile, generate, serve, report, convert, export, show,
    families,
):  # fmt: skip
    app.command(verb.NAME, help=verb.HELP, cls=getattr(verb, "Command", None))(verb.run)


_INTERRUPTED = 130
"""Exit status that typer gives to KeyboardInterrupt."""


def main() -> None:
    """Run the command; print an error in one line unless --traceback is given."""
    try:
        codecs.register_error("skipgpt", _escaped)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="skipgpt")
        # The default, for commands that do not handle SIGTERM themselves.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        app()
    except KeyboardInterrupt:  # before typer runs the command
        sys.exit(_fail("interrupted; the same command starts again", 1))
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            sys.exit(_fail("interrupted; the same command starts again", 1))
        raise
    except SkipGPTError as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(_fail(str(error), 2 if isinstance(error, ConfigError) else 1))
    except BrokenPipeError:
        # The reader of our output may close it, as in `skipgpt show … | head -1`.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if "--traceback" in sys.argv:
            raise
        if "RANK" in os.environ and _is_loss_of_a_process(error):
            what = "running on several processes: got one that ended early"
            if train.NAME in sys.argv[1:2]:
                what += "; the states saved before are kept; the same command with --resume goes on"
            sys.exit(_fail(what, 1))
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        sys.exit(_fail(f"unexpected {what}; --traceback shows where", 1))


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what the output lacks: bytes of a path as they are, other letters escaped."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


def _fail(message: str, status: int) -> int:
    # Of processes that fail together, one prints why.
    if "RANK" in os.environ:
        from skipgpt.system.distributed import may_report

        if not may_report():
            return status
    # Not to sys.stderr, which --quiet has silenced: errors are always printed.
    print(f"skipgpt: {message}", file=sys.__stderr__)
    return status


def _is_loss_of_a_process(error: Exception) -> bool:
    import torch.distributed as dist

    lost = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return isinstance(error, dist.DistError) or any(each in str(error) for each in lost)
