"""skipgpt serve."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from skipgpt.cli.shared import options

NAME = "serve"
HELP = """Answer OpenAI-style requests with a checkpoint's model, until Ctrl-C or SIGTERM.

Completions and chat, streaming, stop sequences, logprobs, and `sparsity` with its `budget` in each
request; /health, and /metrics with measured sparsity and tokens. Where vLLM is installed and can
run the checkpoint it does, many requests at once, and takes its own options after `--`; else
transformers runs one request after the other. Nobody but this machine can connect unless --host
says so.
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
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Of `vllm serve`.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, vllm or transformers; auto is vLLM where it can.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Of the model for clients.  [default: the folder's]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SKIPGPT_API_KEY", help="Clients have to send it; none is asked for "
                     "without it. Other users see what is on a command line."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A web page's origin whose scripts may ask, as in "
                     "https://chat.example; * is any. Repeat. [default: none]"),
    ] = None,
    grace: Annotated[
        int,
        typer.Option(min=0, help="Seconds that requests get to finish once the server is asked to "
                     "stop."),
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
    from skipgpt.checkpoint.folder import local_folder
    from skipgpt.config import as_budget
    from skipgpt.serving.serve import serve

    def ready(address: str) -> None:
        if as_json:
            options.emit({"url": address}, as_json, "", indent=None)
        else:
            print(f"serving on {address}", file=sys.stderr, flush=True)

    serve(
        local_folder(folder),
        engine=engine,
        host=host,
        port=port,
        name=name,
        api_key=api_key,
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
