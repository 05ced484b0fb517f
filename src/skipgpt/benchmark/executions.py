"""What can be timed beside dense, and the words that help and documents have for it."""

from __future__ import annotations

from typing import Literal

Timed = Literal[
    "auto", "sparse", "gated", "transformers", "static", "compiled", "dense-int8", "sparse-int8"
]
"""Executions of the routed model, reference runs, and dense and sparse with 8-bit weights."""

EXECUTIONS: dict[Timed, str] = {
    "auto": "kept tokens only in each module where packing them saves time, else every token",
    "sparse": "kept tokens only",
    "gated": "every token, then times the gate: as the authors run it, without their copies to the "
    "host",
    "static": "a model of fewer layers, as close to the FLOPs of sparse as whole layers come",
    "transformers": "dense with transformers' own cache instead of the preallocated one",
    "compiled": "dense by torch.compile",
    "dense-int8": "dense in 8-bit weights, on a CPU",
    "sparse-int8": "sparse in 8-bit weights, which adds dense-int8",
}
"""The executions in the order of help and documents, each with what runs."""

UNROUTED: frozenset[Timed] = frozenset({"transformers", "compiled", "dense-int8"})
"""Runs that no sparsity changes."""
