"""Policy `kv="skip"`: attention over the keys of kept tokens only.

A token that skips attention in a layer leaves no key and no value there: nothing is computed for
it and nothing stored. Later tokens cannot see it in that layer, so models must be trained that
way. Both executions mask exactly the same keys; `gated` only runs more queries than it needs.

Shapes: B batch, T query tokens, S cached tokens, N packed tokens, P kept tokens in the cache,
K = P + N keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from skipgpt.model import modules
from skipgpt.model.packing import check_mask, take_blocks, take_mask
from skipgpt.model.routed import RoutedLayer

if TYPE_CHECKING:
    from skipgpt.model.caches.skip_cache import SkipLayer


def attend(
    layer: RoutedLayer,
    read: Tensor,
    columns: Tensor,
    kept: Tensor,
    tokens: int,
    arguments: dict[str, Any],
) -> Tensor:
    """Return attention's output [B, N, D] over the keys of kept tokens; caches those keys.

    Attention reads `read` [B, N, D] of the tokens at `columns` [B, N], of `tokens` (T) in this
    forward. Those that are not `kept` [B, N] see themselves and kept tokens; their output must be
    discarded. `arguments` have the positions of the N tokens and the mask of all T.
    """
    cache = _layer_cache(layer, arguments)
    real = layer.routing.token_mask if cache else None
    stored = kept if real is None else kept & real.gather(1, columns)
    past = cache.past if cache else None
    seen = cache.seen if cache else 0
    places = columns + seen
    # `kept`, not `stored`: the given mask hides padding, and `token_mask` is out of date when
    # activation checkpointing recomputes this.
    keys, there = places, kept
    if past is not None:
        held, exist = past
        keys, there = torch.cat([held, places], 1), torch.cat([exist, kept], 1)
    own = torch.arange(keys.shape[1], device=read.device) - (keys.shape[1] - columns.shape[1])
    own = own == torch.arange(columns.shape[1], device=read.device)[:, None]
    visible = there[:, None, :] | own
    given = arguments | {
        "attention_mask": _mask(arguments["attention_mask"], columns, places, keys, visible),
        layer.family.cache: _Store(cache, places, stored, tokens),
    }
    if (alibi := arguments.get("alibi")) is not None:
        heads = alibi.view(len(read), -1, 1, alibi.shape[-1])
        heads = heads.gather(3, keys[:, None, None, :].expand(-1, heads.shape[1], -1, -1))
        given["alibi"] = heads if alibi.ndim == 4 else heads.flatten(0, 1)
    return modules.run_attention(layer, read, given)


def skip_all(layer: RoutedLayer, arguments: dict[str, Any], entering: Tensor) -> None:
    """Tell the cache that all tokens [B, T, D] of this forward skip attention."""
    if cache := _layer_cache(layer, arguments):
        cache.pass_over(*entering.shape[:2])


class _Store:
    """Cache adapter: stores keys and values of kept tokens, returns those to attend to."""

    def __init__(
        self, cache: SkipLayer | None, places: Tensor, stored: Tensor, tokens: int
    ) -> None:
        self._cache, self._places, self._stored, self._tokens = cache, places, stored, tokens

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [B, heads, N, size]; returns [B, heads, K, size]."""
        if self._cache is None:
            return keys, values
        return self._cache.extend(keys, values, self._places, self._stored, self._tokens)


def _layer_cache(layer: RoutedLayer, arguments: dict[str, Any]) -> SkipLayer | None:
    cache = arguments[layer.family.cache]
    return None if cache is None else cache.layers[layer.index]


def _mask(mask: Any, columns: Tensor, places: Tensor, keys: Tensor, visible: Tensor) -> Any:
    """The mask [B, heads, N, K] of the queries at `columns` and the keys at `keys` [B, K]."""
    if mask is None:
        # Plainly causal, or a single query that sees every key.
        return ((keys[:, None, :] <= places[:, :, None]) & visible).unsqueeze(1)
    if isinstance(mask, BlockMask):
        return take_blocks(mask, columns, keys.shape[1], keys, visible)
    mask = check_mask(mask).expand(len(columns), -1, -1, -1)
    if columns.shape[1] < mask.shape[2]:
        mask = take_mask(mask, columns, mask.shape[3])
    index = keys[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    taken: Tensor = mask.gather(3, index)
    hidden = ~visible.unsqueeze(1)
    lowest = False if taken.dtype == torch.bool else torch.finfo(taken.dtype).min
    return taken.masked_fill(hidden, lowest)
