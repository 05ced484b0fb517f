"""Compile every launch of the kernels for GPUs that are not there, at the sizes of Llama-3.1-8B.

    TRITON_INTERPRET=0 python compile_ahead.py bfloat16 80 90

The product's own functions run with tensors that have shapes and no memory; launches stop after
compilation. One JSON document: for each GPU, of each launch the registers, the shared memory, the
bytes of the stack (registers that had to be spilled lie there) and the kind of tensor core
instructions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from skipgpt.kernels import (
    decode_attention,
    decode_linear,
    launch,
    packed_attention,
    packed_linear,
)
from skipgpt.kernels.select import triton_kernels

SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Bytes that one program may have, by compute capability (CUDA C++ programming guide)."""

LONG = os.environ.get("SKIPGPT_LONG") == "1"
"""Whether biases and GELU are compiled, too; without a compiler they are tried in any suite."""

WIDTH, MLP, HEADS, KEY_HEADS, SIZE = 4096, 14336, 32, 8, 128


class NoDriver:
    """As much of a driver as compilation asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # what is compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(batch: int, tokens: int, dtype: torch.dtype) -> None:
    """Call every function once, as a layer does."""
    kernels = triton_kernels()
    rows = batch * tokens

    def empty(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    def whole(*shape: int) -> torch.Tensor:
        return empty(*shape, kind=torch.int32)

    gate, down, square = empty(MLP, WIDTH), empty(WIDTH, MLP), empty(WIDTH, WIDTH)
    stream, opened, count = empty(rows, WIDTH), empty(rows, MLP), whole(1)
    query = empty(batch, tokens, HEADS, SIZE).transpose(1, 2)
    keys = empty(batch, KEY_HEADS, 2048, SIZE)
    if tokens == 1:
        flags = empty(batch, kind=torch.bool)
        mask = empty(batch, 1, 1, 2048, kind=torch.bool)
        kernels.decode_linear(stream, flags, square, None)
        kernels.decode_attend(query, keys, keys, flags, None, 0.1)
        kernels.decode_attend(query, keys, keys, flags, mask, 0.1)
        kernels.decode_linear(stream, flags, square, None, stream, 1.0)
        kernels.decode_gate_up(stream, flags, gate, gate, None, None, "silu")
        kernels.decode_linear(opened, flags, down, None, stream, 1.0)
        return
    mask = empty(batch, 1, tokens, 2048, kind=torch.bool)
    packed = (whole(batch, tokens), whole(batch))
    kernels.row_linear(stream, whole(rows), count, square, None)
    for size in (64, 256):  # of Llama-3.2-1B, of Gemma
        heads = empty(batch, 8, 2048, size)
        kernels.attend(heads[:, :, :tokens], heads, heads, *packed, None, 0, 0.1)
    kernels.attend(query, keys, keys, *packed, None, 0, 0.1)
    kernels.attend(query, keys, keys, *packed, mask, 0, 0.1)
    kernels.add_linear(stream, stream, whole(rows), whole(rows), count, square, None, 1.0)
    for activation in ("silu", "gelu") if LONG else ("silu",):  # gelu_tanh is made of the same
        kernels.gate_up(stream, whole(rows), count, gate, gate, None, None, activation)
    kernels.add_linear(stream, opened, None, whole(rows), count, down, None, 1.0)
    if LONG:
        kernels.row_linear(stream, whole(rows), count, square, empty(WIDTH))


def described(compiled: Any) -> dict[str, Any]:
    """What a compiled launch needs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", told))
    kinds = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
    return {
        "kernel": compiled.metadata.name,
        "registers": int(used["REG"]),
        "stack": int(used["STACK"]) + int(used["LOCAL"]),
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "stages": compiled.metadata.num_stages,
        "products": next((kind for kind in kinds if kind in compiled.asm["ptx"]), "fma"),
    }


def compiled_for(capability: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """What each launch needs on one GPU."""
    triton.runtime.driver.set_active(NoDriver(GPUTarget("cuda", capability, 32)))
    limit = launch.Limits(divmod(capability, 10), SHARED[capability])
    for module in (packed_linear, packed_attention, decode_linear, decode_attention):
        module.limits = lambda _: limit
    made: dict[int, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> None:
        compiled = run(self, *args, **kwargs | {"warmup": True})
        made[id(compiled)] = compiled

    JITFunction.run = compile_only
    for batch, tokens in ((2, 1024), (1, 1), (64, 1)):
        launches(batch, tokens, dtype)
    JITFunction.run = run
    return [described(compiled) for compiled in made.values()]


def main(dtype: torch.dtype, *capabilities: int) -> None:
    """Compile and print."""
    made = {each: compiled_for(each, dtype) for each in capabilities}
    print(json.dumps({each: {"limit": SHARED[each], "rows": made[each]} for each in made}))


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]), *map(int, sys.argv[2:]))
