"""Runs a family's own attention in two parts: keys and values of all, queries of kept tokens.

Attention modules differ in norms, rotary embeddings, biases, sinks and more, but each hands its
new keys and values to the cache once, between projecting and attending. It is split there:

    all tokens  ──▶ [ K and V projections, norms, rotary ] ──▶ cache
    kept tokens ──▶ [ Q projection, norms, rotary ] ──▶ keys and values out of the cache,
                    [ attention, output projection ] ──▶ update

In each part the projections of the other one return zeros, which cost next to nothing. So no
family's attention is reimplemented here, and whatever it does to a query still happens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from skipgpt.model import modules
from skipgpt.model.attention import custom
from skipgpt.model.attention.custom import PackedQueries, Patched
from skipgpt.model.families.family import has
from skipgpt.model.families.linear import in_width, is_plain, out_width, some_outputs
from skipgpt.model.routed import RoutedLayer


class KeysValues(NamedTuple):
    """Keys and values [B, heads, S, size] as attention reads them out of the cache.

    `fused` is the output [B, T, width] of a fused projection that had to run whole, else None.
    """

    keys: Tensor
    values: Tensor
    fused: Tensor | None


def keys_and_values(layer: RoutedLayer, read: Tensor, arguments: dict[str, Any]) -> KeysValues:
    """Compute and cache keys and values of all tokens of read [B, T, D]; no query, no output."""
    family = layer.family
    attn, cache = getattr(layer, family.attn), arguments[family.cache]
    replaced = _blank(layer, family.query)
    fused = _FusedKeys(layer) if family.fused else None
    if fused is not None:
        replaced[family.fused] = fused

    def stop(*update: Any) -> None:
        raise _StopForward(*(update[:2] if cache is None else cache.update(*update)))

    half, catch = Patched(attn, **replaced), Patched(cache, update=stop)
    try:
        modules.run_attention(layer, read, arguments | {family.cache: catch}, half)
    except _StopForward as caught:
        keys, values = caught.args
        return KeysValues(keys, values, fused.whole if fused else None)
    raise AssertionError(f"attention of layer {layer.index} never updated its cache")


def kept_queries(
    layer: RoutedLayer,
    packed: Tensor,
    arguments: dict[str, Any],
    found: KeysValues,
    take: Callable[[Tensor], Tensor],
) -> Tensor:
    """Attention's output [B, N, D] for packed tokens [B, N, D], given the keys and values of all.

    Masks and positions in `arguments` are those of the packed tokens; `take` takes their rows out
    of [B, T, width].
    """
    family = layer.family
    attn = getattr(layer, family.attn)
    replaced = _blank(layer, family.key_value)
    if family.fused:
        whole = found.fused
        replaced[family.fused] = (
            functools.partial(_fused_queries, layer) if whole is None else lambda _: take(whole)
        )
    if isinstance(arguments["attention_mask"], PackedQueries):
        replaced["config"] = Patched(attn.config, _attn_implementation=custom.NAME)
    supply = Patched(arguments[family.cache], update=lambda *_: (found.keys, found.values))
    half = Patched(attn, **replaced)
    return modules.run_attention(layer, packed, arguments | {family.cache: supply}, half)


class _StopForward(Exception):  # noqa: N818 - it ends the first part, nothing went wrong
    """Ends attention's forward and carries keys and values out of the cache."""


class _FusedKeys:
    """A fused projection that computes keys and values; queries too, if it cannot be sliced.

    Attributes:
        whole: its output [B, T, width], if queries were computed too.
    """

    def __init__(self, layer: RoutedLayer) -> None:
        self._projection = getattr(getattr(layer, layer.family.attn), layer.family.fused)
        self._queries = query_width(layer)
        self.whole: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        if self._queries:
            rest = some_outputs(self._projection, rows, self._queries, None)
            return nn.functional.pad(rest, (self._queries, 0))
        whole: Tensor = self._projection(rows)
        self.whole = whole
        return whole


def _fused_queries(layer: RoutedLayer, rows: Tensor) -> Tensor:
    """The output of a fused projection with zeros for keys and values."""
    projection = getattr(getattr(layer, layer.family.attn), layer.family.fused)
    queries = some_outputs(projection, rows, 0, query_width(layer))
    return nn.functional.pad(queries, (0, out_width(projection) - queries.shape[-1]))


def _zeros(width: int, rows: Tensor) -> Tensor:
    """Zeros [..., width] for rows [..., D], as a projection would return them."""
    return rows.new_zeros(*rows.shape[:-1], width)


def blanks(layer: RoutedLayer) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, a function that returns zeros in place of each projection.

    They are one head wide where that suffices.

    Rotary embeddings are applied to the zeros before they are discarded, so width costs time. All
    heads are needed where a norm spans them or each has its own, or where head sizes differ.
    """
    attn, family = getattr(layer, layer.family.attn), layer.family
    lists = any(isinstance(module, nn.ModuleList) for module in attn.modules())
    size = 0 if lists or has(attn, "qk_head_dim") else getattr(attn, "head_dim", 0)
    weights = [p for name, p in attn.named_parameters() if name.endswith("weight")]
    norms = {len(p) for p in weights if p.ndim == 1}
    names = [name for name in (*family.query, *family.key_value) if has(attn, name)]
    widths = {name: out_width(getattr(attn, name)) for name in names}
    narrow = {w for w in widths.values() if size and w % size == 0 and w not in norms}
    return {
        name: functools.partial(_zeros, size if each in narrow else each)
        for name, each in widths.items()
    }


def _blank(layer: RoutedLayer, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: layer.attn_blanks[name] for name in names if name in layer.attn_blanks}


def query_width(layer: RoutedLayer) -> int:
    """How many outputs of the fused projection are queries; 0 if its weight cannot be sliced.

    A projection with LoRA on it, or with packed low-bit weights, has no rows to slice.
    """
    family = layer.family
    attn: Any = getattr(layer, family.attn)
    fused, queries = getattr(attn, family.fused), in_width(getattr(attn, family.output))
    first = family.query_first
    if first == "multi-query":
        first = out_width(fused) == queries + 2 * attn.head_dim
    return queries if first and is_plain(fused) else 0
