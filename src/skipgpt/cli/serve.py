"""skipgpt serve."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from skipgpt.cli.shared import options

NAME = "serve"
HELP = """Serve an OpenAI-compatible API of a checkpoint, until Ctrl-C or SIGTERM.

Completions and chat, streaming, stop strings, logprobs, and `sparsity` and `budget` per request;
/health, and /metrics with measured sparsity and tokens. vLLM runs and batches the requests where it
is installed and supports the checkpoint; its own options follow `--`. Otherwise transformers runs
one request at a time. Only this machine can connect unless --host is given.
""" + options.examples(
    "skipgpt serve out/nano-25",
    "SKIPGPT_API_KEY=secret skipgpt serve out/nano-25 --host 0.0.0.0 --port 8080 --sparsity 0.4",
    "skipgpt serve out/llama-25-merged --engine vllm -- --tensor-parallel-size 2",
)


def run(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A checkpoint, or a merged export.")
    ],
    vllm_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Options of `vllm serve`.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, vllm or transformers; auto is vLLM where possible.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Model name for clients.  [default: the folder's]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SKIPGPT_API_KEY", help="Key that clients must send; none if absent. "
                     "Other users can see what is on a command line."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Origin allowed by CORS, as in "
                     "https://chat.example; * is any. Repeat. [default: none]"),
    ] = None,
    grace: Annotated[
        int,
        typer.Option(min=0, help="Seconds that requests get to finish after a stop signal."),
    ] = 20,
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
) -> None:  # fmt: skip
    """Parse, load, serve."""
    options.begin(quiet=quiet, seed=seed)
    from skipgpt.config import as_budget
    from skipgpt.serving.serve import serve

    def ready(address: str) -> None:
        if as_json:
            options.emit({"url": address}, as_json, "", indent=None)
        else:
            print(f"serving on {address}", file=sys.stderr, flush=True)

    serve(
        folder,
        engine=engine,
        host=host,
        port=port,
        name=name,
        # Typer takes an empty variable for none; an empty key is refused.
        api_key=os.environ.get("SKIPGPT_API_KEY") if api_key is None else api_key,
        allowed_origins=allow_origin or (),
        grace=grace,
        sparsity=sparsity,
        budget=as_budget(budget),
        base=base,
        device=device,
        dtype=dtype,
        quantize=quantize,
        vllm_options=vllm_options or (),
        on_ready=ready,
    )
