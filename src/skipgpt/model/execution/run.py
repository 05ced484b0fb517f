"""Runs a module of a routed layer by its plan: the module for kept tokens, its stand-in for others.

`gated` is the definition: every token runs, outputs are multiplied by the gate. The gate multiplies
the result of the last operation before the residual add. In families with a norm there, a gate
before the norm would have no effect: norms remove the scale of their input.

`sparse` is its twin: only kept tokens run, with the same result. Queries, scores, output projection
and MLP are computed for kept tokens only. Keys and values follow the policy of the routers' config.
`dense`: computed and cached for every token, so that any later token may attend to any earlier one
and every cache of transformers works unchanged. `skip`: a token that skips attention leaves none;
see `skip_kv.py`. Plans are chosen in `plan.py`; those of kernels run in `fused.py`.

Prefill, training and decode steps all come here; they differ in how they decide. Shapes: B batch,
T query tokens, D hidden, N packed tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from skipgpt.model import modules
from skipgpt.model.attention import flat, skip_kv
from skipgpt.model.attention.split import kept_queries, keys_and_values
from skipgpt.model.execution import fused
from skipgpt.model.execution.plan import Plan, stand_ins_run_whole
from skipgpt.model.packing import all_columns, pack_columns, take, take_arguments, take_mask
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.state import given_tokens
from skipgpt.routing.decision import Module, ModuleDecision
from skipgpt.routing.stand_in import StandIn

ROWS = 1024
"""Tokens per call of an MLP on a CPU: the fastest of 256 to 8,192 for an MLP of width 2,816."""

_Run = TypeVar("_Run", bound=Callable[..., Tensor])

# How many tokens run is in the data, and compiled graphs need shapes. All around the two modules of
# a layer still compiles.
_not_compiled = cast(
    "Callable[[_Run], _Run]",
    torch.compiler.disable(reason="the number of packed tokens depends on the data"),  # type: ignore[no-untyped-call]
)


def run(
    layer: RoutedLayer,
    module: Module,
    chosen: Plan,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor:
    """Run a module by its plan; return the residual stream [B, T, D] after it.

    Args:
        layer: with the module.
        module: which of them.
        chosen: how it runs.
        stream: [B, T, D], what its output is added to.
        entering: [B, T, D], what its norm reads.
        decision: which tokens run it; not read where none do, nor, without gradients, where all do.
        arguments: of attention, by name; its cache is updated whatever runs.
    """
    stand_in = layer.attn_stand_in if module == "attn" else layer.mlp_stand_in
    if chosen is Plan.GATED:
        stream = gated(layer, module, stream, entering, decision, arguments)
        return gated_stand_in(stand_in, stream, entering, decision) if stand_in else stream
    after = sparse(layer, module, chosen, stream, entering, decision.keep, arguments)
    if stand_in is None or (chosen is Plan.WHOLE and not torch.is_grad_enabled()):
        return after
    if chosen is Plan.NOTHING:
        update: Tensor = stand_in(entering)
        return after + update
    return sparse_stand_in(stand_in, after, entering, decision.keep, owned=after is not stream)


def gated(
    layer: RoutedLayer,
    module: Module,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor:
    """Stream [B, T, D] plus a module's update of `entering` [B, T, D] times gate (paper)."""
    if module == "attn" and layer.routing.config.kv == "skip":
        read, columns = modules.pre_norm(layer, module, entering), all_columns(decision.keep)
        tokens = stream.shape[1]
        update = skip_kv.attend(layer, read, columns, decision.keep, tokens, arguments)
        update = modules.post_norm(layer, module, update)
    else:
        update = modules.run_module(layer, module, entering, arguments)
    return stream + update * decision.gate.unsqueeze(-1).to(update.dtype)


@_not_compiled
def sparse(
    layer: RoutedLayer,
    module: Module,
    chosen: Plan,
    stream: Tensor,
    entering: Tensor,
    keep: Tensor,
    arguments: dict[str, Any],
) -> Tensor:
    """Stream [B, T, D] plus a module's update of the kept tokens of `entering` [B, T, D]."""
    if chosen is Plan.WHOLE:
        return stream + modules.run_module(layer, module, entering, arguments)
    if chosen is Plan.NOTHING and module == "mlp":
        return stream
    return _RUNS[module, chosen](layer, stream, entering, keep, arguments)


def gated_stand_in(
    stand_in: StandIn, stream: Tensor, entering: Tensor, decision: ModuleDecision
) -> Tensor:
    """Stream [B, T, D] plus the stand-in's output for `entering` [B, T, D] times 1 - gate."""
    update: Tensor = stand_in(entering)
    return stream + update * (1 - decision.gate).unsqueeze(-1).to(update.dtype)


@_not_compiled
def sparse_stand_in(
    stand_in: StandIn, stream: Tensor, entering: Tensor, keep: Tensor, *, owned: bool
) -> Tensor:
    """Stream [B, T, D] plus the stand-in's output for the tokens of `entering` not in `keep`.

    In place where nothing else holds the stream (`owned`) and no gradient is needed.
    """
    if stand_ins_run_whole(stream.device, stream.dtype):
        return torch.where(keep[..., None], stream, stream + stand_in(entering))
    rows = (~keep).flatten().nonzero().squeeze(-1)
    if len(rows) == 0 and not torch.is_grad_enabled():
        return stream
    update = stand_in(entering.flatten(0, 1).index_select(0, rows))
    return add_rows(stream, update, rows, in_place=owned and not torch.is_grad_enabled())


def _keys_and_values_only(
    layer: RoutedLayer, stream: Tensor, entering: Tensor, _: Tensor, arguments: dict[str, Any]
) -> Tensor:
    keys_and_values(layer, modules.pre_norm(layer, "attn", entering), arguments)
    return stream


def _attention_of_rows(
    layer: RoutedLayer, stream: Tensor, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> Tensor:
    read = modules.pre_norm(layer, "attn", entering)
    if flat.can_use(layer, entering.shape[1], arguments):
        return _flat_attention(layer, stream, read, keep, arguments)
    columns, filled = pack_columns(keep)
    idle = columns.shape[1] == 0
    if idle:
        # One query per sequence, as in `_flat_attention`.
        columns, filled = columns.new_zeros(len(columns), 1), filled.new_zeros(len(filled), 1)
    if columns.shape[1] == entering.shape[1]:
        # A sequence keeps all tokens: masks stay in the short form that the fastest kernels take.
        update = modules.run_attention(layer, read, arguments)
    else:
        update = _packed_attention(layer, read, columns, arguments)
    update = modules.post_norm(layer, "attn", update)
    if idle:
        return add_rows(stream, update[filled], columns[filled])
    return add_packed(stream, update, columns, filled)


def _flat_attention(
    layer: RoutedLayer, stream: Tensor, read: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> Tensor:
    """Stream [B, T, D] plus attention of the kept tokens of read [B, T, D]; see `flat.py`."""
    rows = keep.flatten().nonzero().squeeze(-1)
    # One query, whose output is dropped: without any, attention cannot infer its heads.
    queries = rows if len(rows) else rows.new_zeros(1)

    def take_kept(each: Tensor) -> Tensor:
        return each.flatten(0, 1).index_select(0, queries)[None]

    found = keys_and_values(layer, read, arguments)
    packed = flat.take_arguments(arguments, queries, *keep.shape)
    with given_tokens(layer.routing, queries, read.shape[1]):
        update = kept_queries(layer, take_kept(read), packed, found, take_kept)
    update = modules.post_norm(layer, "attn", update)
    return add_rows(stream, update[0, : len(rows)], rows)


def _packed_attention(
    layer: RoutedLayer, read: Tensor, columns: Tensor, arguments: dict[str, Any]
) -> Tensor:
    """Attention [B, N, D] of the tokens at columns [B, N] of read [B, T, D] to all tokens."""
    found, mask = keys_and_values(layer, read, arguments), arguments["attention_mask"]
    # Without a mask and not causal, every query sees every key.
    if mask is not None or modules.is_causal(getattr(layer, layer.family.attn), arguments):
        mask = take_mask(mask, columns, found.keys.shape[2])
    take_kept = functools.partial(take, columns=columns)
    packed = take_arguments(arguments, take_kept, mask)
    with given_tokens(layer.routing, columns, read.shape[1]):
        return kept_queries(layer, take_kept(read), packed, found, take_kept)


def _attention_to_kept_keys(
    layer: RoutedLayer, stream: Tensor, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> Tensor:
    columns, filled = pack_columns(keep)
    tokens = entering.shape[1]
    if columns.shape[1] == 0:
        skip_kv.skip_all(layer, arguments, entering)
        return stream
    if columns.shape[1] < tokens:
        take_kept = functools.partial(take, columns=columns)
        entering = take_kept(entering)
        arguments = take_arguments(arguments, take_kept, arguments["attention_mask"])
    read = modules.pre_norm(layer, "attn", entering)
    with given_tokens(layer.routing, columns, tokens):
        update = skip_kv.attend(layer, read, columns, filled, tokens, arguments)
    return add_packed(stream, modules.post_norm(layer, "attn", update), columns, filled)


def _mlp_of_rows(
    layer: RoutedLayer, stream: Tensor, entering: Tensor, keep: Tensor, arguments: dict[str, Any]
) -> Tensor:
    rows, tokens = keep.flatten().nonzero().squeeze(-1), entering.flatten(0, 1)

    def update_of(some: Tensor) -> Tensor:
        return modules.run_module(layer, "mlp", tokens.index_select(0, some)[None], arguments)[0]

    if torch.is_grad_enabled() or rows.device.type != "cpu" or len(rows) == 0:
        with given_tokens(layer.routing, rows, entering.shape[1]):
            update = update_of(rows)
        return add_rows(stream, update, rows)
    # In chunks, so that the intermediate activations, which are discarded, stay in the CPU cache.
    added = stream.flatten(0, 1).clone()
    for some in rows.tensor_split(-(-len(rows) // ROWS)):
        added.index_add_(0, some, update_of(some).to(added.dtype))
    return added.view_as(stream)


def add_rows(stream: Tensor, update: Tensor, rows: Tensor, *, in_place: bool = False) -> Tensor:
    """Stream [B, T, D] with update [N, D] added to rows [N] of its tokens, in order.

    `in_place` is for streams that nothing else holds; the one that enters a layer may be recorded.
    """
    tokens = stream.flatten(0, 1)
    if len(rows) == len(tokens):
        return stream + update.view_as(stream)
    add = tokens.index_add_ if in_place else tokens.index_add
    return add(0, rows, update.to(stream.dtype)).view_as(stream)


def add_packed(stream: Tensor, update: Tensor, columns: Tensor, filled: Tensor) -> Tensor:
    """Stream [B, T, D] with update [B, N, D] added at columns [B, N] where filled [B, N]."""
    if len(stream) == 1:
        return add_rows(stream, update[0], columns[0])
    first_row = torch.arange(len(stream), device=stream.device)[:, None] * stream.shape[1]
    return add_rows(stream, update[filled], (columns + first_row)[filled])


_RUNS = {
    ("attn", Plan.NOTHING): _keys_and_values_only,
    ("attn", Plan.ROWS): _attention_of_rows,
    ("attn", Plan.KEPT_KEYS): _attention_to_kept_keys,
    ("attn", Plan.KERNELS): fused.attention,
    ("mlp", Plan.ROWS): _mlp_of_rows,
    ("mlp", Plan.KERNELS): fused.mlp,
}
"""Each adds a module's update of the tokens in `keep` [B, T] to the stream [B, T, D]."""
