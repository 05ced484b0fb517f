"""Execution `sparse`: only kept tokens run. The fast twin of `gated`.

Queries, scores, output projection and MLP are computed for kept tokens only. Keys and values
follow the policy of the routers' config. `dense`: computed and cached for every token, so that
any later token may attend to any earlier one and every cache of transformers works unchanged.
`skip`: a token that skips attention leaves none; see `skip_kv.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from skipgpt.model import modules
from skipgpt.model.attention import batch_rows, causal_blocks, skip_kv
from skipgpt.model.attention.split import kept_queries, keys_and_values
from skipgpt.model.execution import fused
from skipgpt.model.packing import (
    add_packed,
    add_rows,
    pack_columns,
    take,
    take_arguments,
    take_mask,
)
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.state import given_tokens
from skipgpt.routing.decision import ModuleDecision
from skipgpt.routing.stand_in import StandIn

ROWS = 1024
"""Tokens an MLP runs at once on a CPU: the best of 256 to 8,192 at an MLP of 2,816."""

_Twin = TypeVar("_Twin", bound=Callable[..., Tensor])


def _not_compiled(twin: _Twin) -> _Twin:
    """Keep `torch.compile` out: its graphs need shapes, and how many tokens run is data.

    Everything around the two modules of a layer still compiles.
    """
    reason = "the number of packed tokens depends on the data"
    made: _Twin = torch.compiler.disable(twin, reason=reason)  # type: ignore[no-untyped-call]
    return made


@_not_compiled
def mlp(layer: RoutedLayer, stream: Tensor, entering: Tensor, decision: ModuleDecision) -> Tensor:
    """Stream [B, T, D] plus the MLP of the kept tokens of `entering` [B, T, D]."""
    if (done := fused.mlp(layer, stream, entering, decision)) is not None:
        return done
    rows = decision.keep.flatten().nonzero().squeeze(-1)
    if len(rows) == 0 and layer.routing.noise is None:
        return stream
    flat = entering.flatten(0, 1)
    if len(rows) == len(flat):
        return stream + _feed_forward(layer, entering)
    if torch.is_grad_enabled() or rows.device.type != "cpu" or len(rows) == 0:
        with given_tokens(layer.routing, rows, entering.shape[1]):
            update = _feed_forward(layer, flat.index_select(0, rows)[None])[0]
        return add_rows(stream, update, rows)
    # What is in between is made and thrown away: in parts that memory at hand has room for.
    whole = stream.flatten(0, 1).clone()
    for some in rows.tensor_split(-(-len(rows) // ROWS)):
        update = _feed_forward(layer, flat.index_select(0, some)[None])[0]
        whole.index_add_(0, some, update.to(whole.dtype))
    return whole.view_as(stream)


def _feed_forward(layer: RoutedLayer, entering: Tensor) -> Tensor:
    update = modules.run_mlp(layer, modules.pre_norm(layer, "mlp", entering))
    return modules.post_norm(layer, "mlp", update)


@_not_compiled
def attention(
    layer: RoutedLayer,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor:
    """Stream [B, T, D] plus attention of the kept tokens of `entering` [B, T, D]."""
    if (done := fused.attention(layer, stream, entering, decision, arguments)) is not None:
        return done
    skips_keys = layer.routing.config.kv == "skip"
    if not skips_keys and batch_rows.can_use(layer, decision.keep, arguments["attention_mask"]):
        update, rows = _attend_rows(layer, entering, decision.keep, arguments)
        return stream if update is None else add_rows(stream, update, rows)
    columns, filled = pack_columns(decision.keep)
    idle = columns.shape[1] == 0 and layer.routing.noise is not None and not skips_keys
    if idle:  # one query, whose output goes nowhere: of none, attention cannot tell its heads
        columns, filled = columns.new_zeros(len(columns), 1), filled.new_zeros(len(filled), 1)
    run = _attend_kept if skips_keys else _attend_all
    update = run(layer, entering, columns, filled, arguments)
    if update is None:
        return stream
    update = modules.post_norm(layer, "attn", update)
    if idle:
        return add_rows(stream, update[filled], columns[filled])
    return add_packed(stream, update, columns, filled)


@_not_compiled
def stand_in(module: StandIn, stream: Tensor, entering: Tensor, decision: ModuleDecision) -> Tensor:
    """Stream [B, T, D] plus the stand-in's output for the skipped tokens of `entering`."""
    if (done := fused.stand_in(module, stream, entering, decision)) is not None:
        return done
    rows = (~decision.keep).flatten().nonzero().squeeze(-1)
    if len(rows) == 0 and not torch.is_grad_enabled():
        return stream
    return add_rows(stream, module(entering.flatten(0, 1).index_select(0, rows)), rows)


def _attend_rows(
    layer: RoutedLayer, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> tuple[Tensor | None, Tensor]:
    """Attention [N, D] of the sequences in keep [B, 1], None where N is 0, and which they are."""
    read, rows = modules.pre_norm(layer, "attn", entering), keep[:, 0].nonzero().squeeze(-1)
    if len(rows) == len(keep):
        return modules.post_norm(layer, "attn", modules.run_attention(layer, read, arguments))[
            :, 0
        ], rows
    found = keys_and_values(layer, read, arguments)
    if len(rows) == 0:
        return None, rows
    packed = batch_rows.take_arguments(arguments, rows, len(keep))
    update = kept_queries(
        layer, batch_rows.take(read, rows), packed, found, lambda each: batch_rows.take(each, rows)
    )
    return modules.post_norm(layer, "attn", update)[0], rows


def _attend_all(
    layer: RoutedLayer, entering: Tensor, columns: Tensor, _: Tensor, arguments: dict[str, Any]
) -> Tensor | None:
    """Attention [B, N, D] of the tokens at columns [B, N] to all tokens; None where N is 0."""
    read, mask = modules.pre_norm(layer, "attn", entering), arguments["attention_mask"]
    if columns.shape[1] == entering.shape[1]:
        # Nothing to pack: masks keep the short form that the fastest kernels want.
        return modules.run_attention(layer, read, arguments)
    found = keys_and_values(layer, read, arguments)
    if columns.shape[1] == 0:
        return None
    packed = take_arguments(arguments, columns)
    if mask is None and not modules.is_causal(getattr(layer, layer.family.attn), arguments):
        packed["attention_mask"] = None  # every query sees every key
    elif causal_blocks.can_use(layer, mask):
        packed["attention_mask"] = causal_blocks.CausalQueries(columns)
    else:
        packed["attention_mask"] = take_mask(mask, columns, found.keys.shape[2])
    with given_tokens(layer.routing, columns, entering.shape[1]):
        return kept_queries(
            layer, take(read, columns), packed, found, lambda rows: take(rows, columns)
        )


def _attend_kept(
    layer: RoutedLayer, entering: Tensor, columns: Tensor, filled: Tensor, arguments: dict[str, Any]
) -> Tensor | None:
    """Attention [B, N, D] of the tokens at columns [B, N] to each other and kept earlier ones."""
    tokens = entering.shape[1]
    if columns.shape[1] == 0:
        skip_kv.pass_over(layer, arguments, entering)
        return None
    if columns.shape[1] < tokens:
        entering, arguments = take(entering, columns), take_arguments(arguments, columns)
    read = modules.pre_norm(layer, "attn", entering)
    with given_tokens(layer.routing, columns, tokens):
        return skip_kv.attend(layer, read, columns, filled, tokens, arguments)
