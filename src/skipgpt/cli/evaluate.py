"""skipgpt eval."""

from __future__ import annotations

from typing import Annotated

import typer

from skipgpt.cli import options

NAME = "eval"
HELP = """Measure loss and perplexity of a checkpoint on text, and the sparsity of that very run.
""" + options.examples(
    "skipgpt eval out/nano-25 --text README.md",
    "skipgpt eval out/nano-25 --text corpus/held_out.jsonl --sparsity 0.4 --json",
)


def run(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint.")],
    text: Annotated[
        list[str], typer.Option(help="Text, JSONL or parquet files, a folder, stdlib. Repeat.")
    ],
    more: options.More = None,
    sparsity: options.Sparsity = None,
    block_size: Annotated[int, typer.Option(help="Tokens a row.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a forward.")] = 8,
    max_documents: Annotated[int, typer.Option(help="Read no more than this; 0 is all.")] = 0,
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
    from typing import cast

    from skipgpt.checkpoint import load
    from skipgpt.config import DataConfig
    from skipgpt.data import pack_blocks, read_documents
    from skipgpt.evaluation.cache_memory import cache_memory
    from skipgpt.evaluation.perplexity import perplexity
    from skipgpt.model.trace import Execution
    from skipgpt.model.trace import execution as executing

    model, tokenizer = load(
        folder,
        sparsity=sparsity,
        base=base,
        merge=True,
        device=device,
        dtype=dtype,
        quantize=quantize,
    )
    config = DataConfig(block_size=block_size, max_documents=max_documents)
    blocks = pack_blocks(read_documents([*text, *(more or [])], config), tokenizer, block_size)
    with executing(model, cast("Execution", execution)):
        result = perplexity(model, blocks, batch_size=batch_size)
        cache = cache_memory(model, blocks[:batch_size])
    document = {**result.to_dict(), "cache": cache.to_dict()}
    options.emit(document, as_json, f"{result}\n{cache}")
