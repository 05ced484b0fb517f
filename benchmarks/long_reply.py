"""Measure memory and pauses of one long reply of `skipgpt serve`, streamed.

    skipgpt serve CHECKPOINT --port 8000 --engine transformers
    python benchmarks/long_reply.py CHECKPOINT --port 8000 --process PID --tokens 4096

Without `--engine transformers` vLLM serves where it is installed, and the process named is not the
one that runs the model. Keys and values grow with the reply; memory that grows beyond them would be
a record of the routes. A record that is added up at the end would pause the stream before its
closing chunk, the one with the finish reason.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM

from record import parser_of, write_record
from skipgpt.checkpoint.folder import read_info
from skipgpt.cost import layer_costs
from skipgpt.model.base import base_config, choose_dtype
from skipgpt.model.surgery import add_routers, routed_layers

PARTS = 8
"""The reply is reported on in so many parts."""


@dataclass(frozen=True)
class Reply:
    """A reply as it came.

    Attributes:
        times: when each chunk with text came.
        memory: resident bytes of the server then.
        closing_gap: seconds from the last text to the closing chunk.
        finish_reason: of that chunk.
        tokens: of the reply, as the server counts them.
    """

    times: list[float]
    memory: list[int]
    closing_gap: float
    finish_reason: str
    tokens: int

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks with text."""
        return [after - before for before, after in itertools.pairwise(self.times)]

    def parts(self, token_bytes: int) -> list[dict[str, Any]]:
        """Return a row at the end of each part: memory, and growth since the first chunk.

        Args:
            token_bytes: size of the keys and values of a token.
        """
        chunks, rows, start = len(self.times), [], 0
        per_chunk = self.tokens / chunks
        for end in sorted({-(-chunks * part // PARTS) for part in range(1, PARTS + 1)}):
            gaps = self.gaps[max(0, start - 1) : end - 1]
            grown = self.memory[end - 1] - self.memory[0]
            keys_and_values = round((end - 1) * per_chunk * token_bytes)
            rows.append(
                {
                    "chunks": end,
                    "resident_bytes": self.memory[end - 1],
                    "grown_bytes": grown,
                    "keys_and_values_bytes": keys_and_values,
                    "beyond_bytes": grown - keys_and_values,
                    "median_gap_seconds": statistics.median(gaps) if gaps else None,
                }
            )
            start = end
        return rows


def read(
    chunks: Iterable[Any],
    resident: Callable[[], int],
    clock: Callable[[], float] = time.perf_counter,
) -> Reply:
    """Read a stream of OpenAI's completion chunks to its end."""
    times: list[float] = []
    memory: list[int] = []
    closing, reason, tokens = 0.0, "", 0
    for chunk in chunks:
        now = clock()
        for choice in chunk.choices:
            if choice.finish_reason:
                # The closing chunk may hold text, too, so it is not among `times` yet.
                closing, reason = now - times[-1] if times else 0.0, choice.finish_reason
            if choice.text:
                times.append(now)
                memory.append(resident())
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    if not (times and reason):
        raise SystemExit("the reply has no text or no end")
    return Reply(times, memory, closing, reason, tokens)


def bytes_per_token(base: str, dtype: str) -> int:
    """Return the size of a token's keys and values in the cache of a base model."""
    with torch.device("meta"):
        model = add_routers(AutoModelForCausalLM.from_config(base_config(base)))
    held = sum(layer_costs(layer).cached for layer in routed_layers(model))
    return held * choose_dtype(dtype, "cpu").itemsize


def milliseconds(seconds: float | None) -> str:
    """Format seconds; None where there are fewer than two chunks."""
    return "none" if seconds is None else f"{1e3 * seconds:.1f} ms"


def main() -> None:
    """Ask for the reply; print its parts, its pauses and where it ended."""
    parser = parser_of(__doc__)
    parser.add_argument("checkpoint", type=Path, help="what is served")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--process", type=int, required=True, help="id of the server's process")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="float32", help="of the served model")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    base = read_info(given.checkpoint).base
    per_token = bytes_per_token(base, given.dtype)
    server = psutil.Process(given.process)
    client = OpenAI(base_url=f"http://127.0.0.1:{given.port}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(
        model=client.models.list().data[0].id,
        prompt="The history of the steam engine",
        max_tokens=given.tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    reply = read(stream, lambda: server.memory_info().rss)
    rows = reply.parts(per_token)
    for row in rows:
        print(
            f"{row['chunks']:,} chunks: {row['resident_bytes'] / 2**20:,.1f} MiB, grown by "
            f"{row['grown_bytes'] / 2**20:,.1f}: keys and values "
            f"{row['keys_and_values_bytes'] / 2**20:,.1f}, beyond them "
            f"{row['beyond_bytes'] / 2**20:,.1f}; "
            f"{milliseconds(row['median_gap_seconds'])} between chunks"
        )
    median, longest = (how(reply.gaps) if reply.gaps else None for how in (statistics.median, max))
    print(
        f"before the closing chunk {milliseconds(reply.closing_gap)}; between chunks with text "
        f"{milliseconds(median)} (median), {milliseconds(longest)} (longest)"
    )
    print(
        f"{reply.tokens:,} tokens in {len(reply.times):,} chunks with text; keys and values take "
        f"{per_token:,} bytes per token"
    )
    if reply.tokens < given.tokens:
        print(f"the reply ended before {given.tokens:,} tokens: {reply.finish_reason}")
    write_record(
        given.out,
        rows,
        base=Path(base).name,
        dtype=given.dtype,
        asked_tokens=given.tokens,
        tokens=reply.tokens,
        finish_reason=reply.finish_reason,
        keys_and_values_bytes_per_token=per_token,
        closing_gap_seconds=reply.closing_gap,
        median_gap_seconds=median,
        longest_gap_seconds=longest,
    )


if __name__ == "__main__":
    main()
