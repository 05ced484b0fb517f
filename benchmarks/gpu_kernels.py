"""Time each kernel on a GPU at the sizes of Llama-3.1-8B, beside other ways to the same result.

    PYTHONPATH=tests/support python benchmarks/gpu_kernels.py --out build/kernels-h100.json

Candidates, each timed with the work that it needs and no other:

    kernel    of `skipgpt.kernels`, as execution `sparse` runs it
    plain     its PyTorch twin, which computes all rows
    dense     what the model without routers runs: all rows, cuBLAS and sdpa
    packed    rows gathered by indices that the host knows already: the host's wait is not in it
    grouped   a grouped product of one group, whose end the device knows (`torch._grouped_mm`)

Weights and inputs are random, kept tokens are drawn at random. Seconds are medians of
`triton.testing.do_bench`, which empties the L2 cache between runs.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from plain_kernels import PLAIN
from record import parser_of, write_record
from skipgpt.kernels.compaction import kept_queries, kept_rows
from skipgpt.kernels.interface import Kernels
from skipgpt.kernels.select import kernels_for

WIDTH, MLP, HEADS, KEY_HEADS, SIZE = 4096, 14336, 32, 8, 128
PREFILLS = (512, 2048, 8192)
BATCHES = (1, 8, 32)
KEYS = (512, 8192)
KEEPS = (0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Attributes:
        kernel: its name.
        size: what the size is made of.
        candidates: ways to compute it, by name.
    """

    kernel: str
    size: dict[str, float]
    candidates: dict[str, Callable[[], object]]


def prefill_cases(kernels: Kernels, tokens: int, keep: float, make: Callable[..., Tensor]) -> Any:
    """Make the kernels of a prefill of one sequence."""
    read, stream, opened = make(tokens, WIDTH), make(tokens, WIDTH), make(tokens, MLP)
    kept = torch.rand(1, tokens, device=read.device) < keep
    found, known = kept_queries(kept), kept.flatten().nonzero().squeeze(-1)
    size = {"tokens": tokens, "keep": keep, "kept": len(known)}
    gate, up, down = make(MLP, WIDTH), make(MLP, WIDTH), make(WIDTH, MLP)
    square = make(WIDTH, WIDTH)
    rows, count = found.rows, found.count

    def grouped(given: Tensor, weight: Tensor) -> Tensor:
        return torch._grouped_mm(given, weight.T[None], offs=count)

    def gate_up(given: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return silu(product(given, gate)) * product(given, up)

    def added(given: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return stream.index_add(0, known, product(given, down)[: len(known)])

    def ways(name: str, *given: Any) -> dict[str, Callable[[], object]]:
        pair = {"kernel": getattr(kernels, name), "plain": getattr(PLAIN, name)}
        return {who: lambda run=run: run(*given) for who, run in pair.items()}

    yield Case("compaction", size, {"kernel": lambda: kept_rows(kept), "packed": kept.nonzero})
    yield Case(
        "gate_up",
        size,
        ways("gate_up", read, rows, count, gate, up, None, None, "silu")
        | {
            "dense": lambda: gate_up(read, linear),
            "packed": lambda: gate_up(read.index_select(0, known), linear),
            "grouped": lambda: gate_up(read.index_select(0, rows), grouped),
        },
    )
    yield Case(
        "add_linear",
        size,
        ways("add_linear", stream, opened, None, rows, count, down, None, 1.0)
        | {
            "dense": lambda: stream + linear(opened, down),
            "packed": lambda: added(opened[: len(known)], linear),
            "grouped": lambda: added(opened, grouped),
        },
    )
    yield Case(
        "row_linear",
        size,
        ways("row_linear", read, rows, count, square, None)
        | {
            "dense": lambda: linear(read, square),
            "packed": lambda: linear(read.index_select(0, known), square),
            "grouped": lambda: grouped(read.index_select(0, rows), square),
        },
    )
    query = make(1, tokens, HEADS, SIZE).transpose(1, 2)
    key, value = make(1, KEY_HEADS, tokens, SIZE), make(1, KEY_HEADS, tokens, SIZE)
    run = kernels.attend
    given = (query, key, value, found.columns, found.counts, None, 0, SIZE**-0.5)
    yield Case(
        "attend",
        size,
        {
            "kernel": lambda: run(*given),
            "plain": lambda: PLAIN.attend(*given),
            "dense": lambda: scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            ),
        },
    )


def decode_cases(kernels: Kernels, batch: int, keep: float, make: Callable[..., Tensor]) -> Any:
    """Make the kernels of a step of one token per sequence, at least one of which keeps."""
    read, stream, opened = make(batch, WIDTH), make(batch, WIDTH), make(batch, MLP)
    kept = torch.rand(batch, device=read.device) < keep
    kept[0] = True
    none = torch.zeros_like(kept)
    size = {"batch": batch, "keep": keep, "kept": int(kept.sum())}
    gate, up, down = make(MLP, WIDTH), make(MLP, WIDTH), make(WIDTH, MLP)
    square = make(WIDTH, WIDTH)

    def ways(name: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> dict[str, Any]:
        run, plain = getattr(kernels, name), getattr(PLAIN, name)
        return {
            "kernel": lambda: run(*before, kept, *after),
            "kernel, all skip": lambda: run(*before, none, *after),
            "plain": lambda: plain(*before, kept, *after),
        }

    yield Case(
        "decode_gate_up",
        size,
        ways("decode_gate_up", (read,), (gate, up, None, None, "silu"))
        | {"dense": lambda: silu(linear(read, gate)) * linear(read, up)},
    )
    yield Case(
        "decode_linear, added",
        size,
        ways("decode_linear", (opened,), (down, None, stream, 1.0))
        | {"dense": lambda: stream + linear(opened, down)},
    )
    yield Case(
        "decode_linear",
        size,
        ways("decode_linear", (read,), (square, None)) | {"dense": lambda: linear(read, square)},
    )
    for keys in KEYS:
        query = make(batch, HEADS, 1, SIZE)
        key, value = make(batch, KEY_HEADS, keys, SIZE), make(batch, KEY_HEADS, keys, SIZE)
        states = (query, key, value)
        yield Case(
            "decode_attend",
            size | {"keys": keys},
            ways("decode_attend", states, (None, SIZE**-0.5))
            | {
                "dense": lambda states=states: scaled_dot_product_attention(
                    *states, enable_gqa=True
                )
            },
        )


def cases(kernels: Kernels, make: Callable[..., Tensor]) -> Iterator[Case]:
    """Make all cases, one after the other."""
    for tokens, keep in itertools.product(PREFILLS, KEEPS):
        yield from prefill_cases(kernels, tokens, keep, make)
    for batch, keep in itertools.product(BATCHES, KEEPS):
        yield from decode_cases(kernels, batch, keep, make)


@torch.inference_mode()
def measure(kernels: Kernels, make: Callable[..., Tensor]) -> list[dict[str, Any]]:
    """Return the seconds of each candidate of each case; None where it cannot run here."""
    from triton.testing import do_bench

    rows = []
    for case in cases(kernels, make):
        seconds: dict[str, float | None] = {}
        for name, run in case.candidates.items():
            try:
                seconds[name] = do_bench(run, return_mode="median") / 1e3
            except RuntimeError as error:
                print(f"{case.kernel}, {name}: {error}", file=sys.stderr)
                seconds[name] = None
        rows.append({"kernel": case.kernel, **case.size, "seconds": seconds})
        figures = ", ".join(f"{n} {1e6 * s:.0f} µs" for n, s in seconds.items() if s is not None)
        print(f"{case.kernel} {case.size}: {figures}", file=sys.stderr)
    return rows


def main() -> None:
    """Measure and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs a CUDA device")
    device = torch.device(given.device)
    torch.manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16) * 0.02

    kernels = kernels_for(device, torch.bfloat16)
    if kernels is None:
        sys.exit("there are no kernels for this device: it needs Triton and an Ampere GPU or newer")
    write_record(given.out, measure(kernels, make), device=device, dtype="bfloat16")


if __name__ == "__main__":
    main()
