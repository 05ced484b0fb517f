"""`SkipCache`: a transformers cache that holds keys and values of kept tokens only.

Rows are ragged: each sequence of each layer holds as many tokens as it kept. A layer reports the
number of tokens it has seen as its length, so masks, positions, `crop` and `generate` work as with
a `DynamicCache`; only `skip_kv.py` reads which keys are stored.

Shapes: B batch, N new tokens, P the most kept tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from skipgpt.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Row:
    """The kept tokens of one sequence: keys and values [heads, P, size], places [P] int32."""

    keys: Tensor
    values: Tensor
    places: Tensor

    def only(self, keep: Tensor) -> Row:
        """The tokens where keep [P] is true."""
        kept = keep.nonzero().squeeze(-1)
        keys, values = (part.index_select(1, kept) for part in (self.keys, self.values))
        return Row(keys, values, self.places.index_select(0, kept))


def join(old: Row, new: Row) -> Row:
    """The tokens of `old`, then those of `new`."""
    if not len(new.places):
        return old
    return Row(
        torch.cat([old.keys, new.keys], 1),
        torch.cat([old.values, new.values], 1),
        torch.cat([old.places, new.places]),
    )


class SkipLayer(CacheLayerMixin):  # type: ignore[misc]
    """The cache of one layer.

    Attributes:
        rows: one for each sequence; None before the first token is kept.
        seen: how many tokens the layer has seen, kept or not.
        window: of sliding attention, None for full attention.
        record_past: whether rows that left the window are held for a later `crop`.
    """

    is_sliding = False  # masks cover all places, windowed or not; skip_kv.py takes their columns
    is_croppable = True

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        """Remove all tokens."""
        self.rows: list[Row] | None = None
        self.batch_size = 0
        self.seen = 0
        self._dropped_before = 0

    def extend(
        self, keys: Tensor, values: Tensor, places: Tensor, stored: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Store some new tokens and return what the new queries may attend to.

        Keys and values are [B, heads, N, size]; the tokens are at `places` [B, N] of their
        sequences, and those in `stored` [B, N] are to be stored. This forward has `tokens` tokens,
        skipped ones included.

        Returns:
            Keys and values [B, heads, P + N, size]: those of the past, then all the new ones.
        """
        held = self._side_by_side(keys, values)
        fresh = [
            Row(keys[b], values[b], places[b].to(torch.int32)).only(stored[b])
            for b in range(len(keys))
        ]
        if self.rows is None:
            self.rows = fresh
        else:
            self.rows = [join(old, new) for old, new in zip(self.rows, fresh, strict=True)]
        self.pass_over(len(keys), tokens)
        return torch.cat([held[0], keys], 2), torch.cat([held[1], values], 2)

    def pass_over(self, batch: int, tokens: int) -> None:
        """Count tokens as seen."""
        self.batch_size = batch
        self.seen += tokens
        if self.window is not None and not self.record_past:
            self._drop(before=self.seen - self.window + 1)

    @property
    def past(self) -> tuple[Tensor, Tensor] | None:
        """Where the stored keys are, padded to [B, P], and which exist; None where none are."""
        if not self.rows:
            return None
        counts = torch.tensor([len(row.places) for row in self.rows])
        places = pad_sequence([row.places for row in self.rows], batch_first=True).long()
        there = torch.arange(places.shape[1]) < counts[:, None]
        return places, there.to(places.device)

    @property
    def nbytes(self) -> int:
        """Bytes stored, places included."""
        parts = [part for r in self.rows or () for part in (r.keys, r.values, r.places)]
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def row_nbytes(self) -> int | None:
        """Bytes of one token's keys and values; None before any was stored."""
        if not self.rows:
            return None
        keys, values = self.rows[0].keys[:, :1], self.rows[0].values[:, :1]
        width = keys.shape[0] * keys.shape[2] + values.shape[0] * values.shape[2]
        return width * keys.element_size()

    @property
    def dense_tokens(self) -> int:
        """Tokens that a cache without skipping would hold, of all sequences."""
        held = self.seen if self.window is None else min(self.seen, self.window - 1)
        return held * self.batch_size

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store every token, as a layer without routers does.

        Raises:
            ConfigError: earlier tokens are missing here, which only a routed layer can handle.
        """
        batch, tokens = key_states.shape[0], key_states.shape[2]
        held = self.dense_tokens // max(1, self.batch_size)
        if held and (not self.rows or any(len(row.places) < held for row in self.rows)):
            raise ConfigError(
                "running a layer without routing",
                got="a SkipCache from which skipped tokens are missing",
                expected="a cache of all tokens",
                todo="start from an empty cache, or run the model gated or sparse",
            )
        places = torch.arange(tokens, device=key_states.device).expand(batch, -1) + self.seen
        stored = torch.ones_like(places, dtype=torch.bool)
        return self.extend(key_states, value_states, places, stored, tokens)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: nothing is preallocated."""

    def get_seq_length(self) -> int:
        """Tokens seen, kept or not."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1, as for caches without a limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Size masks for all tokens seen; `skip_kv.py` takes the columns of stored keys."""
        return self.seen + query_length, 0

    def activate_past_recording(self) -> None:
        """Hold tokens that leave the window from now on, until the next crop."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens.

        Args:
            tokens_to_remove: a negative number, as in transformers.

        Raises:
            ValueError: the number is positive.
            ConfigError: tokens that have left the window would be needed again.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens, got {tokens_to_remove}")
        seen = max(0, self.seen + tokens_to_remove)
        if self.window and max(0, seen - self.window + 1) < self._dropped_before:
            raise ConfigError(
                "cropping a SkipCache",
                got="a sliding window that has moved on",
                todo="call cache.activate_past_recording() before the forward to be undone",
            )
        self.seen = seen
        if self.rows is not None:
            self.rows = [row.only(row.places < self.seen) for row in self.rows]
        if self.window is not None:
            self._drop(before=self.seen - self.window + 1)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order; indices or a mask."""
        chosen = torch.arange(self.batch_size, device=indices.device)[indices].tolist()
        if self.rows is not None:
            self.rows = [self.rows[b] for b in chosen]
        self.batch_size = len(chosen)

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence so many times, with its copies adjacent."""
        if self.rows is not None:
            self.rows = [row for row in self.rows for _ in range(repeats)]
        self.batch_size *= repeats

    @property
    def is_initialized(self) -> bool:
        """Whether any token was stored."""
        return self.rows is not None

    def _drop(self, before: int) -> None:
        self._dropped_before = max(self._dropped_before, before)
        if self.rows is not None and before > 0:
            self.rows = [row.only(row.places >= before) for row in self.rows]

    def _side_by_side(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stored keys and values, padded to [B, heads, P, size]; new ones give shape and device."""
        if not self.rows:
            return keys[:, :, :0], values[:, :, :0]
        if len(self.rows) == 1:
            return self.rows[0].keys[None], self.rows[0].values[None]
        most = max(len(row.places) for row in self.rows)
        pads = [(0, 0, 0, most - len(row.places)) for row in self.rows]
        pad = torch.nn.functional.pad
        return (
            torch.stack([pad(row.keys, by) for row, by in zip(self.rows, pads, strict=True)]),
            torch.stack([pad(row.values, by) for row, by in zip(self.rows, pads, strict=True)]),
        )


class SkipCache(Cache):  # type: ignore[misc]
    """The cache of a model with policy `kv="skip"`.

    Models create one themselves, also in `generate`; pass one to keep it across calls.

    Args:
        config: of the model: how many layers, and which attend to a window.

    Example:
        cache = skipgpt.SkipCache(model.config)
        model(prompt, past_key_values=cache)
        print(cache.nbytes)
    """

    def __init__(self, config: Any) -> None:
        plain = DynamicCache(config=config.get_text_config()).layers
        super().__init__(
            layers=[SkipLayer(getattr(layer, "sliding_window", None)) for layer in plain]
        )

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def dense_nbytes(self) -> int:
        """Bytes that the same tokens would take if none had skipped."""
        rows = [layer.row_nbytes for layer in self.layers]
        known = next((row for row in rows if row is not None), 0)
        return sum(
            layer.dense_tokens * (known if row is None else row)
            for layer, row in zip(self.layers, rows, strict=True)
        )


def turn_into_skip_cache(cache: DynamicCache, config: Any) -> None:
    """Turn an empty cache, as `generate` makes one, into a `SkipCache` in place."""
    recorded = [getattr(layer, "record_past", False) for layer in cache.layers]
    cache.layers = SkipCache(config).layers
    for layer, record in zip(cache.layers, recorded, strict=False):
        layer.record_past = record
    cache.layer_class_to_replicate = None
    cache.__class__ = SkipCache
