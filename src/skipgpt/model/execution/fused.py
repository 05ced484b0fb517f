"""Execution `sparse` on a GPU: the number of kept tokens stays on the device.

    read [B, T, D] ──▶ Q projection of kept rows      ─┐
                   ──▶ K and V projections, cache      ├─▶ attention of kept queries
                                                       │
    stream [B, T, D] ◀── O projection of kept rows, added where they are ◀┘

A family's own attention runs once, with its projections of queries and outputs replaced by kernels,
and its attention function by a custom one. All shapes are those of all tokens and every token stays
in its place, so positions, masks and caches are the family's own. The rows of tokens that skip are
arbitrary: rotary embeddings and norms work row by row, and nothing reads those rows in the end.

`plan.py` decides where kernels run; elsewhere kept tokens are packed in PyTorch (`run.py`).

Shapes: B batch, T query tokens, S keys, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skipgpt.kernels import select
from skipgpt.kernels.compaction import KeptQueries, kept_queries, kept_rows
from skipgpt.kernels.interface import Kernels
from skipgpt.model import modules
from skipgpt.model.attention import custom
from skipgpt.model.attention.custom import PackedQueries, Patched
from skipgpt.model.execution.plan import ACTIVATIONS
from skipgpt.model.routed import RoutedLayer


@dataclass(frozen=True, eq=False)
class QueriesOnDevice(PackedQueries):
    """Which queries run, and the kernels to attend with.

    Attributes:
        kernels: to attend with.
        kept: the queries, packed; None in a one-token step.
        keep: [B, T] bool.
        mask: [B or 1, 1, T, S] bool, of all T queries; None where plainly causal.
    """

    kernels: Kernels
    kept: KeptQueries | None
    keep: Tensor
    mask: Tensor | None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None, **_: Any
    ) -> Tensor:
        """Attention [B, T, H, size] of queries [B, H, T, size] to keys [B, heads, S, size]."""
        kept, mask, kernels = self.kept, self.mask, self.kernels
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if kept is None:
            return kernels.decode_attend(query, key, value, self.keep[:, 0], mask, scale)
        tokens, keys = query.shape[2], key.shape[2]
        # Without a mask several queries start at the first key, however much space a cache has, and
        # one query sees every key. With a mask a static cache may have space behind the last query.
        offset = 0 if mask is None and tokens > 1 else keys - tokens
        return kernels.attend(query, key, value, kept.columns, kept.counts, mask, offset, scale)


def mlp(
    layer: RoutedLayer, stream: Tensor, entering: Tensor, keep: Tensor, _: dict[str, Any]
) -> Tensor:
    """Stream [B, T, D] plus the MLP of the kept tokens of `entering`."""
    kernels = _kernels_of(stream)
    module = getattr(layer, layer.family.mlp)
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    weights = (gate.weight, up.weight, gate.bias, up.bias)
    activation, scale = ACTIVATIONS[type(module.act_fn).__name__], _scale(layer)
    read, flat = modules.pre_norm(layer, "mlp", entering).flatten(0, 1), stream.flatten(0, 1)
    if _is_step(keep):
        flags = keep[:, 0]
        opened = kernels.decode_gate_up(read, flags, *weights, activation)
        summed = kernels.decode_linear(opened, flags, down.weight, down.bias, flat, scale)
    else:
        kept = kept_rows(keep)
        opened = kernels.gate_up(read, kept.rows, kept.count, *weights, activation)
        summed = kernels.add_linear(
            flat, opened, None, kept.rows, kept.count, down.weight, down.bias, scale
        )
    return summed.view_as(stream)


def attention(
    layer: RoutedLayer, stream: Tensor, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> Tensor:
    """Stream [B, T, D] plus attention of the kept tokens of `entering` to all."""
    kernels = _kernels_of(stream)
    family, attn = layer.family, getattr(layer, layer.family.attn)
    query, output = getattr(attn, family.query[0]), getattr(attn, family.output)
    scale, flat = _scale(layer), stream.flatten(0, 1)
    kept = None if _is_step(keep) else kept_queries(keep)

    def project(read: Tensor) -> Tensor:
        rows = read.flatten(0, 1)
        if kept is None:
            made = kernels.decode_linear(rows, keep[:, 0], query.weight, query.bias)
        else:
            made = kernels.row_linear(rows, kept.rows, kept.count, query.weight, query.bias)
        return made.view(*keep.shape, -1)

    def add(attended: Tensor) -> Tensor:
        rows, weights = attended.flatten(0, 1), (output.weight, output.bias)
        if kept is None:
            made = kernels.decode_linear(rows, keep[:, 0], *weights, flat, scale)
        else:
            made = kernels.add_linear(flat, rows, kept.rows, kept.rows, kept.count, *weights, scale)
        return made.view_as(stream)

    mask = QueriesOnDevice(kernels, kept, keep, arguments["attention_mask"])
    config = Patched(attn.config, _attn_implementation=custom.NAME)
    patched = Patched(attn, config=config, **{family.query[0]: project, family.output: add})
    read = modules.pre_norm(layer, "attn", entering)
    return modules.run_attention(layer, read, arguments | {"attention_mask": mask}, patched)


def _kernels_of(stream: Tensor) -> Kernels:
    """The kernels for this tensor; the plan has found that there are any."""
    kernels = select.kernels_for(stream.device, stream.dtype)
    assert kernels is not None
    return kernels


def _is_step(keep: Tensor) -> bool:
    """Whether keep [B, T] is that of a decode step of few sequences."""
    return keep.shape[1] == 1 and len(keep) <= select.MOST_SEQUENCES


def _scale(layer: RoutedLayer) -> float:
    """What a module's output is multiplied by before it is added."""
    return float(getattr(layer, layer.family.scale)) if layer.family.scale else 1.0
