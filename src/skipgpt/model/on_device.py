"""Execution `sparse` on a GPU: how many tokens are kept stays on the device.

    read [B, T, D] ──▶ Q projection of kept rows      ─┐
                   ──▶ K and V projections, cache      ├─▶ attention of kept queries
                                                       │
    stream [B, T, D] ◀── O projection of kept rows, added where they are ◀┘

A family's own attention runs once, with its projections of queries and outputs replaced by kernels,
and its attention function by one of ours. All shapes are those of all tokens and every token stays
in its place, so positions, masks and caches are as the family knows them. The rows of tokens that
skip are arbitrary; rotary embeddings and norms work row by row, and nothing reads them in the end.

Each function gives None where the kernels do not suit; then kept tokens are packed in PyTorch.

Shapes: B batch, T query tokens, S keys, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skipgpt.kernels.compaction import KeptQueries, kept_queries, kept_rows
from skipgpt.kernels.plain import Activation
from skipgpt.kernels.select import MOST_SEQUENCES, WIDEST_HEAD, Kernels, kernels_for
from skipgpt.model import halves, parts
from skipgpt.model.causal_blocks import BlockwiseConfig
from skipgpt.routing.decision import ModuleDecision
from skipgpt.routing.stand_in import StandIn

if TYPE_CHECKING:
    from skipgpt.model.layer import RoutedLayer

NAME = "skipgpt_packed_queries"

ACTIVATIONS: dict[str, Activation] = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
}
"""By class, of torch and of transformers."""

_GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_OWN_SCORES = ("sinks", "attn_logit_softcapping")
"""What attention may have that changes its scores."""


@dataclass(frozen=True, eq=False)
class PackedQueries:
    """In the place of a mask: where the queries are, and how to attend with them.

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


class _PackedConfig(BlockwiseConfig):
    """The config of an attention module, except that it asks for attention of packed queries."""

    _attn_implementation = NAME


def mlp(
    layer: RoutedLayer, stream: Tensor, entering: Tensor, decision: ModuleDecision
) -> Tensor | None:
    """Stream [B, T, D] plus the MLP of the kept tokens of `entering`, or None."""
    kernels = mlp_kernels(layer, stream)
    if kernels is None:
        return None
    module, keep = getattr(layer, layer.family.mlp), decision.keep
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    weights = (gate.weight, up.weight, gate.bias, up.bias)
    activation, scale = ACTIVATIONS[type(module.act_fn).__name__], _scale(layer)
    read, flat = parts.normed(layer, "mlp", entering).flatten(0, 1), stream.flatten(0, 1)
    if _is_step(keep):
        flags = keep[:, 0]
        opened = kernels.decode_gate_up(read, flags, *weights, activation)
        summed = kernels.decode_add_linear(flat, opened, flags, down.weight, down.bias, scale)
    else:
        kept = kept_rows(keep)
        opened = kernels.gate_up(read, kept.rows, kept.count, *weights, activation)
        summed = kernels.add_linear(
            flat, opened, None, kept.rows, kept.count, down.weight, down.bias, scale
        )
    return summed.view_as(stream)


def attention(
    layer: RoutedLayer,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor | None:
    """Stream [B, T, D] plus attention of the kept tokens of `entering` to all, or None."""
    kernels = attention_kernels(layer, stream, arguments)
    if kernels is None:
        return None
    family, keep = layer.family, decision.keep
    attn = getattr(layer, family.attn)
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
            made = kernels.decode_add_linear(flat, rows, keep[:, 0], *weights, scale)
        else:
            made = kernels.add_linear(flat, rows, kept.rows, kept.rows, kept.count, *weights, scale)
        return made.view_as(stream)

    mask = PackedQueries(kernels, kept, keep, arguments["attention_mask"])
    instead = {family.query[0]: project, family.output: add, "config": _PackedConfig(attn.config)}
    read = parts.normed(layer, "attn", entering)
    return halves.with_replaced(layer, read, arguments | {"attention_mask": mask}, instead)


def stand_in(
    module: StandIn, stream: Tensor, entering: Tensor, decision: ModuleDecision
) -> Tensor | None:
    """Stream [B, T, D] plus the stand-in's output where tokens skip, or None.

    It is computed for all: it is small, and there is nothing to wait for.
    """
    if torch.is_grad_enabled() or kernels_for(stream) is None:
        return None
    return torch.where(decision.keep[..., None], stream, stream + module(entering))


def register() -> None:
    """Make the name known to transformers; again and again does no harm."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedQueries,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention [B, T, H, size] of queries [B, H, T, size] to keys [B, heads, S, size]."""
    asked, kept = attention_mask, attention_mask.kept
    mask, kernels = asked.mask, asked.kernels
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kept is None:
        return kernels.decode_attend(query, key, value, asked.keep[:, 0], mask, scale), None
    tokens, keys = query.shape[2], key.shape[2]
    # Without a mask several queries start at the first key, however much room a cache has; one
    # query sees all there is. With one, a static cache may have room behind the last query.
    offset = 0 if mask is None and tokens > 1 else keys - tokens
    attended = kernels.attend(query, key, value, kept.columns, kept.counts, mask, offset, scale)
    return attended, None


def asks_the_host(layer: RoutedLayer) -> bool:
    """Whether a one-token step of this layer has to wait for the device.

    If not, a step can be captured as a CUDA graph.
    """
    norm = next(layer.parameters())
    probe = norm.new_empty(1, 1, 1)
    given: dict[str, Any] = {"attention_mask": None}
    suited = mlp_kernels(layer, probe), attention_kernels(layer, probe, given)
    return any(kernels is None for kernels in suited)


def mlp_kernels(layer: RoutedLayer, stream: Tensor) -> Kernels | None:
    """The kernels that can run this layer's MLP, if any: gated, of plain linear layers."""
    kernels = kernels_for(stream)
    if kernels is None or not _plain_residual(layer, layer.family.mlp_after, stream):
        return None
    module = getattr(layer, layer.family.mlp)
    names = set(type(module).forward.__code__.co_names)
    suits = (
        names == _GATED_MLP
        and type(module.act_fn).__name__ in ACTIVATIONS
        and all(_is_bare(getattr(module, name), stream) for name in _GATED_MLP - {"act_fn"})
    )
    return kernels if suits else None


def attention_kernels(
    layer: RoutedLayer, stream: Tensor, arguments: dict[str, Any]
) -> Kernels | None:
    """The kernels that can run this layer's attention, if any: of sdpa, causal, nothing fused."""
    kernels, family = kernels_for(stream), layer.family
    if kernels is None or not _plain_residual(layer, family.attn_after, stream):
        return None
    attn = getattr(layer, family.attn)
    if layer.routing.config.kv == "skip" or family.fused or len(family.query) != 1:
        return None
    suits = all(
        _is_bare(getattr(attn, name), stream) for name in (*family.query, family.output)
    ) and _is_plainly_causal(attn, arguments)
    return kernels if suits else None


def _is_plainly_causal(attn: Any, arguments: dict[str, Any]) -> bool:
    """Whether attention is softmax over earlier keys, and asks transformers to compute it."""
    mask = arguments["attention_mask"]
    return (
        "ALL_ATTENTION_FUNCTIONS" in type(attn).forward.__code__.co_names
        and attn.config._attn_implementation == "sdpa"
        and getattr(attn, "is_causal", True) is True
        and arguments.get("is_causal") in (None, True)
        and all(getattr(attn, name, None) is None for name in _OWN_SCORES)
        and getattr(attn, "head_dim", WIDEST_HEAD + 1) <= WIDEST_HEAD
        and (mask is None or (isinstance(mask, Tensor) and _is_shared_bool(mask)))
    )


def _is_shared_bool(mask: Tensor) -> bool:
    return mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1] == 1


def _plain_residual(layer: RoutedLayer, after: tuple[str, ...], stream: Tensor) -> bool:
    """Whether a module's output is added as it is, or scaled, and nobody wants a gradient."""
    return (
        not after
        and not layer.family.adds_residual
        and not layer.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(stream.device.type)
    )


def _is_bare(linear: Any, stream: Tensor) -> bool:
    """Whether a layer is nothing but a product with weights like the stream."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and (linear.weight.dtype, linear.weight.device) == (stream.dtype, stream.device)
        and linear.weight.is_contiguous()
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )


def _is_step(keep: Tensor) -> bool:
    """Whether this is one token of few sequences, keep [B, T]."""
    return keep.shape[1] == 1 and len(keep) <= MOST_SEQUENCES


def _scale(layer: RoutedLayer) -> float:
    """What a module's output is multiplied by before it is added."""
    return float(getattr(layer, layer.family.scale)) if layer.family.scale else 1.0
